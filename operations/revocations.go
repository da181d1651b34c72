package operations

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"tomato/httpapi"
	"tomato/queryside"
)

// revocationsEvery is how often an instance looks for revocations that others have made.
const revocationsEvery = time.Second

// Revocation says that the tokens of a subject are refused that were issued up to a time.
type Revocation struct {
	Sub       string    `json:"sub"`
	RevokedAt time.Time `json:"revokedAt" doc:"Tokens whose iat is in a later second are accepted."`
	By        string    `json:"by" doc:"ops:<sub>, or cli:<user>."`
	Reason    string    `json:"reason"`
}

// upTo returns the latest iat that is refused. An iat has whole seconds, so a token that was
// issued in the same second, but later, is refused as well.
func (r *Revocation) upTo() time.Time { return r.RevokedAt.Truncate(time.Second) }

// Revoke revokes the tokens of a subject that were issued until now, by the clock of the
// database. When it returns, the revocation is durable, and every instance that reaches the
// database knows it about a second later. A repeat revokes what was issued meanwhile, too.
func Revoke(ctx context.Context, db *pgxpool.Pool, sub, by, reason string) (Revocation, error) {
	r := Revocation{Sub: sub, By: by, Reason: reason}
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE tomato.revocations IN SHARE ROW EXCLUSIVE MODE`); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `INSERT INTO tomato.revocations AS r (sub, seq, revoked_at, revoked_by, reason)
			SELECT $1, coalesce(max(seq), 0) + 1, clock_timestamp(), $2, $3 FROM tomato.revocations
			ON CONFLICT (sub) DO UPDATE SET seq = excluded.seq, revoked_at = greatest(r.revoked_at, excluded.revoked_at),
				revoked_by = excluded.revoked_by, reason = excluded.reason
			RETURNING revoked_at`, sub, by, reason).Scan(&r.RevokedAt)
	})
	r.RevokedAt = r.RevokedAt.UTC()
	return r, err
}

// Revocations knows all revocations. They are few, and looked up for every request, so all
// of them are in memory. They stay for ever, because nobody knows when the last token ends
// that was issued before. It is safe for concurrent use.
type Revocations struct {
	db   *pgxpool.Pool
	log  *slog.Logger
	told func(sub string, upTo time.Time) // may be nil

	reading sync.Mutex // held while the table is read; guards seq
	seq     int64

	mu   sync.RWMutex // guards what follows
	upTo map[string]time.Time
	read time.Time // when the table was last read
}

// NewRevocations reads the revocations.
func NewRevocations(ctx context.Context, db *pgxpool.Pool, registry prometheus.Registerer, log *slog.Logger) (*Revocations, error) {
	r := &Revocations{db: db, log: log, upTo: map[string]time.Time{}}
	if err := r.refresh(ctx); err != nil {
		return nil, err
	}
	registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tomato_revocations", Help: "Subjects whose tokens were revoked."}, func() float64 {
			r.mu.RLock()
			defer r.mu.RUnlock()
			return float64(len(r.upTo))
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tomato_revocations_read_timestamp_seconds", Help: "When this instance last looked for revocations, as Unix time."},
			func() float64 { return float64(r.Read().Unix()) }))
	return r, nil
}

// Tell sets what is called for each revocation that is read from now on, one after the other,
// after RevokedUpTo knows it. It must be called before Follow and before requests are served.
func (r *Revocations) Tell(told func(sub string, upTo time.Time)) { r.told = told }

// RevokedUpTo implements httpapi.Revocations.
func (r *Revocations) RevokedUpTo(sub string) (upTo time.Time, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	upTo, ok = r.upTo[sub]
	return upTo, ok
}

// Read returns when the table was last read.
func (r *Revocations) Read() time.Time {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.read
}

// Follow looks for new revocations until ctx ends. While the database cannot be read, those
// that are known stay.
func (r *Revocations) Follow(ctx context.Context) {
	tick := time.NewTicker(revocationsEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		limited, cancel := context.WithTimeout(ctx, timeout)
		err := r.refresh(limited)
		cancel()
		switch {
		case err != nil && !failing && ctx.Err() == nil:
			r.log.Warn("revoked tokens cannot be looked up: those that are known stay refused, and later ones are not known here", "err", err)
		case err == nil && failing:
			r.log.Info("revoked tokens can be looked up again")
		}
		failing = err != nil
	}
}

// refresh reads the rows that are new.
func (r *Revocations) refresh(ctx context.Context) error {
	r.reading.Lock()
	defer r.reading.Unlock()
	rows, err := r.db.Query(ctx, `SELECT sub, seq, revoked_at FROM tomato.revocations WHERE seq > $1 ORDER BY seq`, r.seq)
	if err != nil {
		return err
	}
	var found []Revocation
	var one Revocation
	seq := r.seq
	if _, err := pgx.ForEachRow(rows, []any{&one.Sub, &seq, &one.RevokedAt}, func() error {
		found = append(found, one)
		return nil
	}); err != nil {
		return err
	}
	r.mu.Lock()
	r.read = time.Now()
	for i := range found {
		r.upTo[found[i].Sub] = found[i].upTo()
	}
	r.mu.Unlock()
	for i := range found {
		if r.told != nil {
			r.told(found[i].Sub, found[i].upTo())
		}
	}
	r.seq = seq
	return nil
}

type revokeInput struct {
	Body struct {
		Sub    httpapi.ID   `json:"sub" doc:"Of the tokens."`
		Reason httpapi.Text `json:"reason" doc:"It is kept for ever, and must not hold personal data."`
	}
}

type revocationOutput struct{ Body Revocation }

func (o *Operations) revocationRoutes(api *httpapi.API) {
	op := operation("/v1/ops/revocations", "revokeTokens", "Refuse the tokens that a subject has")
	op.Method = http.MethodPost
	op.Description = "Tokens of the subject, of any role, whose iat is not after revokedAt are 401 from now on, and those without iat; their feeds are closed. " +
		"Every instance does so within seconds. Tokens that are issued later are accepted."
	httpapi.Register(api, op, operators, o.revoke)
}

func (o *Operations) revoke(ctx context.Context, in *revokeInput) (*revocationOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	made, err := Revoke(ctx, o.Revocations.db, string(in.Body.Sub), "ops:"+httpapi.Actor(ctx).Sub, string(in.Body.Reason))
	if err != nil {
		return nil, queryside.Problem(err)
	}
	if err := o.Revocations.refresh(ctx); err != nil { // it is durable, and is read within a second
		o.Revocations.log.Warn("a revocation that was made here is not in force here yet", "err", err)
	}
	return &revocationOutput{made}, nil
}

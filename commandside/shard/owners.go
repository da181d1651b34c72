package shard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/httpapi"
)

// Owner is where the commands of a shard go: a hint, never a proof.
type Owner struct {
	Shard int32  `json:"shard"`
	Term  int64  `json:"term"`  // of its claim on orders
	Owner string `json:"owner"` // instance
	URL   string `json:"url"`
}

// owners follows topic shard-owners: for each shard who wrote itself with the
// highest term. Safe for concurrent use.
type owners struct {
	mu      sync.Mutex
	known   map[int32]Owner
	changed chan struct{}
	// lower is called, without locks, when a lower term than the known one lands
	// behind it: compaction would keep that one.
	lower func(known Owner)
}

func newOwners() *owners {
	return &owners{known: map[int32]Owner{}, changed: make(chan struct{})}
}

// learn takes an owner in; it says whether a higher one is known.
func (o *owners) learn(n Owner) (stale bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	old, ok := o.known[n.Shard]
	if ok && n.Term <= old.Term {
		return n.Term < old.Term
	}
	o.known[n.Shard] = n
	close(o.changed)
	o.changed = make(chan struct{})
	return false
}

func (o *owners) of(shard int32) (Owner, bool, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, ok := o.known[shard]
	return n, ok, o.changed
}

// run follows the topic until ctx ends.
func (o *owners) run(ctx context.Context, cfg eventlog.Config, log *slog.Logger) error {
	client, err := cfg.NewClient(kgo.ConsumeTopics(eventlog.ShardOwners), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		for _, fe := range fetches.Errors() {
			log.Warn("shard owners: fetch failed", "err", fe.Err)
		}
		for iter := fetches.RecordIter(); !iter.Done(); {
			r := iter.Next()
			var n Owner
			if err := json.Unmarshal(r.Value, &n); err != nil {
				log.Warn("shard owners: a record that is none", "partition", r.Partition, "offset", r.Offset)
				continue
			}
			if o.learn(n) {
				if known, _, _ := o.of(n.Shard); o.lower != nil {
					o.lower(known)
				}
			}
		}
	}
}

// announce writes this instance as the shard's owner.
func (s *Shards) announce(p int32, term int64) {
	n := Owner{Shard: p, Term: term, Owner: s.Instance, URL: s.URL}
	s.owners.learn(n)
	b, err := json.Marshal(n)
	if err != nil {
		return
	}
	s.mu.Lock()
	producer := s.producer
	s.mu.Unlock()
	producer.Produce(context.Background(), &kgo.Record{Topic: eventlog.ShardOwners, Partition: p, Key: []byte(strconv.Itoa(int(p))), Value: b},
		func(_ *kgo.Record, err error) {
			if err != nil {
				s.Log.Warn("shard owner not announced; others wait until the next take-over", "partition", p, "err", err)
			}
		})
}

// announceAgain puts this instance back as the last record of a shard that it
// serves, where an older owner's record landed behind its own.
func (s *Shards) announceAgain(known Owner) {
	s.mu.Lock()
	sh := s.serving[known.Shard]
	s.mu.Unlock()
	if sh != nil && sh.term == known.Term && known.Owner == s.Instance {
		s.announce(known.Shard, known.Term)
	}
}

// CommandsPath is where Handler is to be served.
const CommandsPath = "/internal/shard-commands"

// forwardMargin is what is kept of a deadline for the way back, so that the
// owner's answer to it arrives.
const forwardMargin = 50 * time.Millisecond

// errNotSent says that a forwarded command did not leave: it may be sent elsewhere.
var errNotSent = errors.New("not sent")

// misdirected is a 421: the asked instance is not the owner, and knows this one.
type misdirected struct{ owner Owner }

func (m misdirected) Error() string { return "another instance owns the shard" }

// forward sends a command to the shard's owner and returns its answer.
func (s *Shards) forward(ctx context.Context, to Owner, r Request) (Result, error) {
	if err := r.prepare(); err != nil {
		return Result{}, err
	}
	body, err := encodeRequest(r)
	if err != nil {
		return Result{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to.URL+CommandsPath, bytes.NewReader(body))
	if err != nil {
		return Result{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	timeout := maxForwardedFor
	if deadline, ok := ctx.Deadline(); ok {
		timeout = time.Until(deadline) - forwardMargin
	}
	s.signRequest(req.Header, body, timeout)
	resp, err := s.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return Result{}, fmt.Errorf("%w: %w", errNotSent, err)
		}
		return Result{}, fmt.Errorf("%w: %w", ErrUnavailable, err) // it may have been decided
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxForwarded))
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		res, err := decodeAnswer(r.Topic, b)
		if err != nil && domain.RefusedWith(err) == "" { // it may have been decided
			err = fmt.Errorf("%w: the owner's answer cannot be read: %w", ErrUnavailable, err)
		}
		return res, err
	case http.StatusMisdirectedRequest:
		var m misdirected
		_ = json.Unmarshal(b, &m.owner) // empty where it knows none
		return Result{}, m
	}
	if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusBadRequest {
		if s.told.now() {
			s.Log.Error("the owner of a shard refuses what this instance forwards", "shard", to.Shard, "owner", to.Owner, "url", to.URL, "err", refusedCall(resp, b))
		}
	}
	return Result{}, fmt.Errorf("%w: owner answered %s", ErrUnavailable, resp.Status)
}

// Handler takes commands that other instances forward. They go no further: a
// command for a shard that is not served here is 421 with the owner that this
// instance knows, never itself.
func (s *Shards) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, limit, ok := s.verifyCall(w, r)
		if !ok {
			return
		}
		req, err := decodeRequest(b)
		if err != nil {
			s.refuseCall(w, r, refusedCommand, httpapi.NewProblem(http.StatusBadRequest, "bad_request", "The forwarded command is not valid: "+err.Error()+"."))
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		p := s.partitionOf(&req)
		s.mu.Lock()
		sh := s.serving[p]
		s.mu.Unlock()
		if sh == nil {
			s.misdirect(w, p)
			return
		}
		var res Result
		if err = s.Menus.WaitFor(ctx, req.After); err == nil {
			res, err = s.local(ctx, sh, &req)
		}
		if errors.Is(err, errNotDecided) {
			s.misdirect(w, p)
			return
		}
		answer, err := encodeAnswer(res, err)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
	})
}

func (s *Shards) misdirect(w http.ResponseWriter, p int32) {
	known, ok, _ := s.owners.of(p)
	if !ok || known.Owner == s.Instance {
		known = Owner{}
	}
	b, err := json.Marshal(known)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusMisdirectedRequest)
	_, _ = w.Write(b)
}

package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"
)

// This file owns the key set: where it is read, how often, and what is known of it.

const (
	keySetRefresh    = 5 * time.Minute  // after it was read
	keySetRetryFirst = time.Second      // after a failure; twice as long after each further one
	keySetRetryMost  = 30 * time.Second // but no longer than this
	keySetRetryAfter = 5 * time.Second  // what callers are told
	keySetTimeout    = 5 * time.Second
	// For a token with an unknown key id the key set is read again, but not more often than
	// unknownKeyEvery, and requests wait for that no longer than unknownKeyWait. Otherwise
	// anybody could make requests wait.
	unknownKeyEvery = 30 * time.Second
	unknownKeyWait  = 2 * time.Second
	maxKeySetBytes  = 1 << 20
)

// errKeysUnread means that the token's key is not known, and that the key set which may have
// it cannot be read.
var errKeysUnread = errors.New("the key set cannot be read")

// CheckKeySetURL returns an error unless keys can be read from the URL safely: by https, or
// by http from this machine. Whoever can change the answer can make tokens.
func CheckKeySetURL(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return errors.New("it is not a URL")
	}
	ip := net.ParseIP(u.Hostname())
	switch {
	case u.Host == "":
		return errors.New("it is not a URL with a host")
	case u.Scheme == "https", u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()):
		return nil
	}
	return errors.New("it must begin with https://, because whoever can change the answer can make tokens. http:// is for addresses of this machine")
}

// keySet has the keys of RS256 and ES256 tokens, and reads them again from time to time. As
// long as it cannot read them, it keeps those that it has read before. It is safe for
// concurrent use.
type keySet struct {
	url     string
	client  *http.Client
	log     *slog.Logger
	failed  prometheus.Counter
	stop    context.CancelFunc
	stopped chan struct{}

	renewing sync.Mutex // held while the key set is read for an unknown key; guards renewed
	renewed  time.Time

	mu   sync.Mutex      // guards what follows
	keys keyfunc.Keyfunc // nil: never read
	at   time.Time       // when it was read
	err  error           // of the last attempt
}

// newKeySet returns a key set after the first attempt to read it.
func newKeySet(address string, registry prometheus.Registerer, log *slog.Logger) *keySet {
	ctx, stop := context.WithCancel(context.Background())
	k := &keySet{url: address, log: log, stop: stop, stopped: make(chan struct{}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{Name: "tomato_jwks_failed_reads_total", Help: "Attempts to read the JWT key set that failed."}),
		client: &http.Client{CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) >= 5 {
				return errors.New("too many redirects")
			}
			return CheckKeySetURL(r.URL.String())
		}}}
	if registry != nil {
		registry.MustRegister(k.failed, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tomato_jwks_read_timestamp_seconds",
			Help: "When the JWT key set was last read, as Unix time; 0: never."}, func() float64 {
			if at, _ := k.status(); !at.IsZero() {
				return float64(at.Unix())
			}
			return 0
		}))
	}
	k.read(ctx, keySetTimeout)
	go k.run(ctx)
	return k
}

func (k *keySet) close() {
	k.stop()
	<-k.stopped
}

// run reads the key set again and again until ctx ends.
func (k *keySet) run(ctx context.Context) {
	defer close(k.stopped)
	retry := keySetRetryFirst
	for {
		wait := keySetRefresh
		if _, err := k.status(); err != nil {
			wait, retry = retry, min(2*retry, keySetRetryMost)
		} else {
			retry = keySetRetryFirst
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		k.read(ctx, keySetTimeout)
	}
}

// read reads the key set once.
func (k *keySet) read(ctx context.Context, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	keys, err := k.fetch(ctx)
	if err != nil {
		k.failed.Inc()
		k.log.Error("the JWT key set could not be read", "url", withoutPassword(k.url), "err", withoutURL(err))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err = err; err == nil {
		k.keys, k.at = keys, time.Now()
	}
}

func (k *keySet) fetch(ctx context.Context) (keyfunc.Keyfunc, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the answer is %s", resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxKeySetBytes+1))
	if err != nil {
		return nil, err
	}
	var set jwkset.JWKSMarshal
	if len(b) > maxKeySetBytes || json.Unmarshal(b, &set) != nil || set.Keys == nil {
		return nil, errors.New("the answer is not a JWK set of at most 1 MiB")
	}
	var keys []jwkset.JWK
	for _, k := range set.Keys {
		key, err := jwkset.NewJWKFromMarshal(k, jwkset.JWKMarshalOptions{Private: true}, jwkset.JWKValidateOptions{})
		if errors.Is(err, jwkset.ErrUnsupportedKey) { // others may use it
			continue
		}
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	store := jwkset.NewMemoryStorage()
	if err := store.KeyReplaceAll(ctx, keys); err != nil {
		return nil, err
	}
	return keyfunc.New(keyfunc.Options{Storage: store})
}

// status returns when the key set was last read, zero if never, and the error of the last
// attempt.
func (k *keySet) status() (at time.Time, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.at, k.err
}

// key returns the key for a token. It fails with errKeysUnread if it does not know the key
// and the last attempt to read the key set has failed.
func (k *keySet) key(t *jwt.Token) (any, error) {
	key, err := k.lookUp(t)
	if err == nil || k.known() && !errors.Is(err, jwkset.ErrKeyNotFound) {
		return key, err
	}
	k.renew()
	key, err = k.lookUp(t)
	if _, failed := k.status(); err != nil && failed != nil {
		err = errKeysUnread
	}
	return key, err
}

func (k *keySet) known() bool {
	at, _ := k.status()
	return !at.IsZero()
}

func (k *keySet) lookUp(t *jwt.Token) (any, error) {
	k.mu.Lock()
	keys := k.keys
	k.mu.Unlock()
	if keys == nil {
		return nil, errKeysUnread
	}
	return keys.Keyfunc(t)
}

// renew reads the key set for a key that it does not have, unless it was just done. Requests
// that come meanwhile wait for it.
func (k *keySet) renew() {
	k.renewing.Lock()
	defer k.renewing.Unlock()
	if time.Since(k.renewed) < unknownKeyEvery {
		return
	}
	k.renewed = time.Now()
	k.read(context.Background(), unknownKeyWait)
}

// withoutPassword returns the URL in a form that a log may show.
func withoutPassword(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "not a URL"
	}
	return u.Redacted()
}

// withoutURL returns the error without the URL, which may have a password.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

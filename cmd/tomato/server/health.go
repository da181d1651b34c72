package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	healthy  = "ready"
	degraded = "degraded"
	notReady = "not_ready"

	checkTimeout   = 2 * time.Second // of all checks together, because they run at the same time
	healthCached   = time.Second
	revocationsOld = 15 * time.Second // after that, revocations of other instances may be missing here
	sayAgain       = time.Minute      // how long a failing check logs no new text after its last one
)

// check is one thing that may be wrong with this process. While a serving check fails,
// this instance answers requests of its roles with 503, so other instances should get
// these requests. While any other check fails, the instance is degraded, and it would
// not help to send its requests to other instances.
type check struct {
	name    string
	serving bool
	reason  string // what /readyz answers; everybody may see it, so it names no hosts, topics or consumers
	ask     func(context.Context) error

	running sync.Mutex // held while ask runs, so that a call of ask that does not return is not followed by another
	said    string     // the error that was logged last; "" if the check passed
	saidAt  time.Time
}

var errNoAnswer = errors.New("the check does not return")

func (c *check) run(ctx context.Context) error {
	if !c.running.TryLock() {
		return errNoAnswer
	}
	answer := make(chan error, 1)
	go func() {
		defer c.running.Unlock()
		answer <- c.ask(ctx)
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return errNoAnswer
	}
}

// health runs the checks for /readyz, the metrics and the log. Safe for
// concurrent use.
type health struct {
	checks   []*check
	cached   time.Duration // how long a result is used
	stopping *atomic.Bool
	log      *slog.Logger

	mu    sync.Mutex // held while the checks run, so that concurrent callers share one run
	last  healthReport
	until time.Time
}

type healthReport struct {
	Status  string            `json:"status"`
	Reasons map[string]string `json:"reasons,omitempty"` // by the check's name
}

// report returns the results of the checks. They are at most a second old.
func (h *health) report() healthReport {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopping.Load() {
		return healthReport{notReady, map[string]string{"server": "It is stopping."}}
	}
	if time.Now().Before(h.until) {
		return h.last
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	errs := make([]error, len(h.checks))
	var wg sync.WaitGroup
	for i, c := range h.checks {
		wg.Go(func() { errs[i] = c.run(ctx) })
	}
	wg.Wait()
	now := time.Now()
	r := healthReport{Status: healthy, Reasons: map[string]string{}}
	for i, c := range h.checks {
		h.say(c, errs[i], now)
		if errs[i] == nil {
			continue
		}
		r.Reasons[c.name] = c.reason
		if c.serving {
			r.Status = notReady
		} else if r.Status == healthy {
			r.Status = degraded
		}
	}
	h.last, h.until = r, now.Add(h.cached)
	return r
}

// say logs the result of a check if it has changed since it was logged last.
func (h *health) say(c *check, err error, now time.Time) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	switch {
	case text == c.said, text != "" && c.said != "" && now.Sub(c.saidAt) < sayAgain:
		return
	case text == "":
		h.log.Info("a health check passes again", "check", c.name)
	case c.serving:
		h.log.Warn("a health check fails; this instance is not ready", "check", c.name, "err", err)
	default:
		h.log.Warn("a health check fails; this instance is degraded", "check", c.name, "err", err)
	}
	c.said, c.saidAt = text, now
}

// ServeHTTP answers GET /readyz.
func (h *health) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	r := h.report()
	b, err := json.Marshal(r)
	if err != nil { // cannot happen, because the report consists of strings
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if r.Status == notReady {
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write(append(b, '\n'))
}

var (
	readyDesc    = prometheus.NewDesc("tomato_ready", "1 while /readyz is 200, degraded or not.", nil, nil)
	degradedDesc = prometheus.NewDesc("tomato_degraded", "1 while the check fails.", []string{"check"}, nil)
)

// Describe implements prometheus.Collector.
func (h *health) Describe(descs chan<- *prometheus.Desc) {
	descs <- readyDesc
	descs <- degradedDesc
}

// Collect implements prometheus.Collector.
func (h *health) Collect(values chan<- prometheus.Metric) {
	r := h.report()
	number := func(is bool) float64 {
		if is {
			return 1
		}
		return 0
	}
	values <- prometheus.MustNewConstMetric(readyDesc, prometheus.GaugeValue, number(r.Status != notReady))
	for _, c := range h.checks {
		values <- prometheus.MustNewConstMetric(degradedDesc, prometheus.GaugeValue, number(r.Reasons[c.name] != ""), c.name)
	}
}

// newHealth returns the checks of this process's roles. It must be called after the
// parts of the roles have been made.
func (s *Server) newHealth() *health {
	h := &health{cached: healthCached, stopping: &s.stopping, log: s.log}
	add := func(name string, serving bool, reason string, ask func(context.Context) error) {
		h.checks = append(h.checks, &check{name: name, serving: serving, reason: reason, ask: ask})
	}
	command, query := s.config.has(RoleCommand), s.config.has(RoleQuery)
	if command {
		add("shards", true, "Shards of this instance are not served yet.", func(context.Context) error {
			if unserved := s.shards.Unserved(); len(unserved) > 0 {
				return fmt.Errorf("assigned shards %v are not served yet", unserved)
			}
			return nil
		})
		add("menus", true, "The menus are being read.", func(context.Context) error {
			select {
			case <-s.menus.Ready():
				return nil
			default:
				return errors.New("the topic restaurants has not been read to the end that it had at the start")
			}
		})
		// If nobody serves a shard, every instance answers 503 for it, so it would not
		// help to send requests to other instances. But an instance that has just
		// started is not ready before it knows where all shards are.
		unreachable := func(context.Context) error {
			if shards := s.shards.Unreachable(); len(shards) > 0 {
				return fmt.Errorf("nobody is known to serve shards %v", shards)
			}
			return nil
		}
		var known atomic.Bool
		add("owners", true, "The other instances are not known yet.", func(ctx context.Context) error {
			if known.Load() {
				return nil
			}
			err := unreachable(ctx)
			known.Store(err == nil)
			return err
		})
		add("other-shards", false, "Shards of other instances are not served.", unreachable)
		add("open-shards", false, "Shards of this instance cannot be opened.", func(context.Context) error { return s.shards.OpenError() })
	}
	if s.side != nil {
		add("broker", command, "No broker answers.", func(ctx context.Context) error { return anyBroker(ctx, s.side.Producer) })
	}
	// The database is not a serving check of the role command. Commands need only the
	// log, except /payment with the simulated gateway, which is one operation of many.
	add("database", query, "The database does not answer.", func(ctx context.Context) error { return s.db.shared.Ping(ctx) })
	if s.hub != nil {
		add("feed", true, "The feed is catching up.", func(context.Context) error {
			if !s.hub.IsReady() {
				return errors.New("the feed is catching up")
			}
			return nil
		})
	}
	if s.config.JWKSURL != "" {
		add("token-keys", command || query || s.hub != nil, "The keys of tokens were never read.", func(context.Context) error {
			if at, err := s.auth.KeySetRead(); at.IsZero() {
				return err
			}
			return nil
		})
		add("token-keys-refresh", false, "The keys of tokens cannot be read again.", func(context.Context) error {
			_, err := s.auth.KeySetRead()
			return err
		})
	}
	add("revocations", false, "Revoked tokens cannot be looked up.", func(context.Context) error {
		if old := time.Since(s.revocations.Read()); old > revocationsOld {
			return fmt.Errorf("the last look was %v ago", old.Round(time.Second))
		}
		return nil
	})
	if s.projector != nil {
		add("feed-bases", false, "The feed cannot record how far it is.", func(context.Context) error { return s.projector.Unrecorded() })
	}
	add("consumers", false, "Read models or policies stand still.", func(context.Context) error {
		if stopped := s.runtime.Stopped(); len(stopped) > 0 {
			return errors.New(strings.Join(stopped, ", "))
		}
		return nil
	})
	add("read-models", false, "Read models have to be rebuilt.", func(context.Context) error {
		if advice := s.models.RebuildAdvice(); advice != "" {
			return errors.New(advice)
		}
		return nil
	})
	s.registry.MustRegister(h)
	return h
}

// anyBroker asks all brokers at the same time and returns when one of them has answered.
// One answer is enough, because other brokers may have become leaders in place of those
// that do not answer. It does not ask the brokers one after the other, because a broker
// that hangs does not close its connections.
func anyBroker(ctx context.Context, client *kgo.Client) error {
	brokers := append(client.DiscoveredBrokers(), client.SeedBrokers()...)
	answers := make(chan error, len(brokers))
	for _, b := range brokers {
		go func() {
			_, err := b.Request(ctx, kmsg.NewPtrApiVersionsRequest())
			answers <- err
		}()
	}
	err := errors.New("no broker is known")
	for range brokers {
		if err = <-answers; err == nil {
			return nil
		}
	}
	return err
}

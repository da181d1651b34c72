package subjectkeys

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// unreadableLogEvery is the pause between two log entries about texts that are unreadable.
const unreadableLogEvery = 10 * time.Second

// metrics counts what a keyring does. Safe for concurrent use after register.
type metrics struct {
	made, unreadable prometheus.Counter

	mu       sync.Mutex // guards the fields below
	n        int        // unreadable texts since the last log entry
	loggedAt time.Time
}

// register makes the metrics, and registers them unless r is nil.
func (m *metrics) register(r prometheus.Registerer, held func() int) error {
	m.made = prometheus.NewCounter(prometheus.CounterOpts{Name: "tomato_subject_keys_made_total", Help: "Keys of customers, riders and webhooks that this instance has made."})
	m.unreadable = prometheus.NewCounter(prometheus.CounterOpts{Name: "tomato_unreadable_texts_total",
		Help: "Personal fields that could not be opened although nobody was erased: damaged, written by another program, or sealed under a key that is lost."})
	if r == nil {
		return nil
	}
	all := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tomato_subject_keys", Help: "Keys that this instance holds."}, func() float64 { return float64(held()) })
	return errors.Join(r.Register(m.made), r.Register(m.unreadable), r.Register(all))
}

// unreadableText counts an unreadable text. If it is time for a log entry, now is true and
// n is how many there were since the last one.
func (m *metrics) unreadableText() (n int, now bool) {
	m.unreadable.Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.n++
	if time.Since(m.loggedAt) < unreadableLogEvery {
		return 0, false
	}
	n, m.n, m.loggedAt = m.n, 0, time.Now()
	return n, true
}

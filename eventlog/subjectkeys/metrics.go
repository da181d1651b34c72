package subjectkeys

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tomato/eventlog"
)

// unreadableLogEvery is the pause between two log entries about texts that are unreadable.
const unreadableLogEvery = 10 * time.Second

// metrics counts what a keyring does. Safe for concurrent use after register.
type metrics struct {
	made, unreadable prometheus.Counter
	unreadableLog    eventlog.LogSampler
}

// register makes the metrics, and registers them unless r is nil.
func (m *metrics) register(r prometheus.Registerer, held func() int) error {
	m.unreadableLog.Every = unreadableLogEvery
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
	return m.unreadableLog.Count()
}

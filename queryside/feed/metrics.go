package feed

import (
	"errors"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

type hubMetrics struct {
	connections, indexed prometheus.Gauge
	queued               *atomic.Int64 // bytes
	messages, replayed   prometheus.Counter
	closes, resumes      *prometheus.CounterVec
	lag                  prometheus.Histogram
}

func newHubMetrics(reg prometheus.Registerer) (*hubMetrics, error) {
	m := &hubMetrics{
		connections: prometheus.NewGauge(prometheus.GaugeOpts{Name: "tomato_feed_connections", Help: "Feed connections that are open."}),
		queued:      new(atomic.Int64),
		messages:    prometheus.NewCounter(prometheus.CounterOpts{Name: "tomato_feed_messages_total", Help: "Messages queued to connections, one per receiver."}),
		indexed:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "tomato_feed_index_bytes", Help: "Size of the index of which rooms have messages of which records."}),
		replayed:    prometheus.NewCounter(prometheus.CounterOpts{Name: "tomato_feed_replayed_records_total", Help: "Records that were read again for clients which returned, one per client."}),
		closes:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tomato_feed_closes_total", Help: "Connections that the server ended, by reason."}, []string{"reason"}),
		resumes:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tomato_feed_resumes_total", Help: "Connections with a cursor: resumed, or reset."}, []string{"result"}),
		lag: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "tomato_feed_lag_seconds", Help: "Time from a record's timestamp until its messages are queued.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60}}),
	}
	queued := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tomato_feed_queued_bytes", Help: "Bytes that wait in the queues of all connections."},
		func() float64 { return float64(m.queued.Load()) })
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.connections, queued, m.indexed, m.messages, m.replayed, m.closes, m.resumes, m.lag} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

func (m *hubMetrics) resume(ok bool) {
	result := "reset"
	if ok {
		result = "resumed"
	}
	m.resumes.WithLabelValues(result).Inc()
}

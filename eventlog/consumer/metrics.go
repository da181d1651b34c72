package consumer

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// runtimeMetrics are the metrics of a runtime: counters, and gauges that are read from
// Status when they are collected.
type runtimeMetrics struct {
	r                             *Runtime
	invalid, retries, deadLetters *prometheus.CounterVec
	handledTotal, skipped         *prometheus.CounterVec
	breakers                      *prometheus.GaugeVec
	lagRecords, lagSeconds        *prometheus.Desc
	inRetry, waiting, dead        *prometheus.Desc
	keys, oldestDead, paused      *prometheus.Desc
}

func newRuntimeMetrics(r *Runtime) *runtimeMetrics {
	part := []string{"consumer", "generation", "topic", "partition"}
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, part, nil)
	}
	m := &runtimeMetrics{
		r:            r,
		invalid:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tomato_void_records_total", Help: "Invalid records that consumers skipped, each time one is read, by reason."}, []string{"topic", "reason"}),
		retries:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tomato_consumer_retries_total", Help: "Failed attempts after which a record was parked for retry."}, []string{"consumer"}),
		deadLetters:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tomato_consumer_dead_letters_total", Help: "Records that became dead letters."}, []string{"consumer", "class"}),
		handledTotal: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tomato_consumer_events_total", Help: "Events that have taken effect on their first attempt."}, []string{"consumer"}),
		skipped:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tomato_consumer_skipped_total", Help: "Records of telemetry topics that could not be read, or whose handler failed, and were passed over."}, []string{"consumer", "topic"}),
		breakers: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tomato_breaker_state",
			Help: "Of what consumers depend on: 0 it answers, 1 one call finds out whether it answers again, 2 it is unavailable."}, []string{"dependency"}),
		lagRecords: desc("tomato_consumer_lag_records", "Records of the partition that are neither done nor parked."),
		lagSeconds: desc("tomato_consumer_lag_seconds", "Age of the oldest such record."),
		inRetry:    desc("tomato_consumer_in_retry", "Parked records that will be tried again."),
		waiting:    desc("tomato_consumer_waiting", "Records queued behind a parked one of their key."),
		dead:       desc("tomato_consumer_dead", "Dead letters."),
		keys:       desc("tomato_consumer_parked_keys", "Keys with parked records."),
		oldestDead: desc("tomato_consumer_oldest_dead_seconds", "Age of the oldest dead letter; 0 if there is none."),
		paused:     desc("tomato_consumer_paused", "1 while the partition is paused because too much is parked."),
	}
	if r.Registry != nil {
		m.invalid, m.retries = register(r.Registry, m.invalid), register(r.Registry, m.retries)
		m.breakers, m.skipped = register(r.Registry, m.breakers), register(r.Registry, m.skipped)
		m.deadLetters, m.handledTotal = register(r.Registry, m.deadLetters), register(r.Registry, m.handledTotal)
		_ = register(r.Registry, prometheus.Collector(m))
	}
	return m
}

// register registers c and returns it. If its name is registered already, because
// another part of the process counts in the same series, it returns that collector.
func register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	var already prometheus.AlreadyRegisteredError
	if err := reg.Register(c); errors.As(err, &already) {
		if existing, ok := already.ExistingCollector.(C); ok {
			return existing
		}
	}
	return c
}

func (m *runtimeMetrics) invalidRecord(topic, reason string) {
	m.invalid.WithLabelValues(topic, reason).Inc()
}
func (m *runtimeMetrics) retry(consumer string) { m.retries.WithLabelValues(consumer).Inc() }
func (m *runtimeMetrics) deadLetter(consumer, class string) {
	m.deadLetters.WithLabelValues(consumer, class).Inc()
}
func (m *runtimeMetrics) handled(consumer string, n int) {
	m.handledTotal.WithLabelValues(consumer).Add(float64(n))
}

// Describe implements prometheus.Collector.
func (m *runtimeMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.lagRecords, m.lagSeconds, m.inRetry, m.waiting, m.dead, m.keys, m.oldestDead, m.paused} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *runtimeMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.r.Status() {
		for _, p := range c.Partitions {
			labels := []string{c.Consumer, strconv.Itoa(c.Generation), p.Topic, strconv.Itoa(int(p.Partition))}
			put := func(d *prometheus.Desc, v float64) {
				ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
			}
			put(m.lagRecords, float64(p.LagRecords))
			put(m.lagSeconds, p.LagSeconds)
			put(m.inRetry, float64(p.Retrying))
			put(m.waiting, float64(p.Waiting))
			put(m.dead, float64(p.Dead))
			put(m.keys, float64(p.ParkedKeys))
			age := 0.0
			if !p.OldestDead.IsZero() {
				age = time.Since(p.OldestDead).Seconds()
			}
			put(m.oldestDead, age)
			paused := 0.0
			if p.Paused != "" {
				paused = 1
			}
			put(m.paused, paused)
		}
	}
}

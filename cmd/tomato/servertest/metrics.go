package servertest

import (
	"bufio"
	"bytes"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/domain"
)

// NoDeadLetters fails the test if there is a dead letter.
func (a *Installation) NoDeadLetters() {
	a.T.Helper()
	if items, _ := a.Must(Ops, "GET /v1/ops/dead-letters", nil).Get("items").([]any); len(items) > 0 {
		a.T.Errorf("dead letters: %v", items)
	}
}

// Metric returns the sum of the series of that name whose labels contain all of with.
func (a *Installation) Metric(name string, with ...string) (sum float64) {
	a.T.Helper()
	x := a.Must(domain.Actor{}, "GET /metrics", nil)
	for s := bufio.NewScanner(bytes.NewReader(x.Body)); s.Scan(); {
		line := s.Text()
		labels, value, ok := strings.Cut(line, " ")
		if !ok || labels != name && !strings.HasPrefix(line, name+"{") {
			continue
		}
		if i := strings.LastIndexByte(line, ' '); i >= 0 {
			labels, value = line[:i], line[i+1:]
		}
		matches := true
		for _, w := range with {
			matches = matches && strings.Contains(labels, w)
		}
		if v, err := strconv.ParseFloat(value, 64); matches && err == nil {
			sum += v
		}
	}
	return sum
}

// NothingFailed fails the test if an event cost an attempt: none is parked, and there
// is no copy on any retry or dead letter topic of any consumer.
func (a *Installation) NothingFailed() {
	a.T.Helper()
	if copies := a.Copies(); len(copies) > 0 {
		a.T.Errorf("copies of failed events: %v", copies)
	}
	if n := a.Metric("tomato_consumer_retries_total") + a.Metric("tomato_consumer_dead_letters_total"); n > 0 {
		a.T.Errorf("%v attempts failed", n)
	}
	a.NoDeadLetters()
}

// Copies returns the numbers of records on the retry and dead letter topics that have
// some.
func (a *Installation) Copies() map[string]int64 {
	a.T.Helper()
	ends, err := kadm.NewClient(a.Log.client).ListEndOffsets(a.T.Context())
	if err != nil {
		a.T.Fatal(err)
	}
	n := map[string]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if strings.Contains(o.Topic, ".retry-") || strings.HasSuffix(o.Topic, ".dlq") {
			if n[o.Topic] += o.Offset; n[o.Topic] == 0 {
				delete(n, o.Topic)
			}
		}
	})
	return n
}

package projections

import (
	"bytes"
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// Whatever a record contains, a read model folds it into a row or fails with ErrPoison.
// Then the event is parked, and the events of other keys are handled as before.

func FuzzOrdersFold(f *testing.F)      { fuzzFold(f, eventlog.Orders, "order", orders) }
func FuzzPaymentsFold(f *testing.F)    { fuzzFold(f, eventlog.Payments, "payment", payments) }
func FuzzRidersFold(f *testing.F)      { fuzzFold(f, eventlog.Riders, "rider", riders) }
func FuzzRestaurantsFold(f *testing.F) { fuzzFold(f, eventlog.Restaurants, "restaurant", restaurants) }

func fuzzFold[S, E any](f *testing.F, topic, noun string, a *aggregates[S, E]) {
	eventlogtest.FuzzRecords(f, topic, "../domain/"+noun+"/testdata/*.v1.json", func(t *testing.T, r *kgo.Record) {
		e, _ := eventlog.ParseRecord(r)
		rule := eventlog.Rule{Term: 1}
		if take, _ := rule.Take(&e); !take || e.Fault != nil {
			return // skipped, or parked as it is
		}
		row := &folded[S]{id: e.Subject}
		for range 3 { // the same again, as the next event: other states are reached
			before := row.version
			if err := a.step(row, &e); err != nil {
				if !errors.Is(err, eventlog.ErrPoison) || row.version != before {
					t.Fatalf("version %d after %d: %v", row.version, before, err)
				}
				return
			}
			var lines bytes.Buffer
			cells := []string{row.id, marshal(&row.state)}
			for _, c := range a.columns {
				cells = append(cells, c.value(&row.state))
			}
			copyLine(&lines, cells...)
			e.Version++
		}
	})
}

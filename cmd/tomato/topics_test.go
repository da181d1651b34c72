package main_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// TestTopicsDescribeShowsBytes looks at two orders and a payment as topics describe shows
// them: as JSON and as text, with the records counted and without.
func TestTopicsDescribeShowsBytes(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 2})
	w := eventlogtest.NewWriter(t, cfg, 2)
	for _, id := range []string{"o1", "o2"} {
		w.Append(eventlog.Orders, id, order.OrderPlaced{OrderID: id}, order.OrderPaid{OrderID: id})
	}
	w.Append(eventlog.Payments, "o1", payment.PaymentRequested{OrderID: "o1"})
	describe := func(flags ...string) string {
		cmd := exec.CommandContext(t.Context(), os.Args[0], append([]string{"topics", "describe", "--partitions", "2", "--kafka-brokers", strings.Join(cfg.Brokers, ",")}, flags...)...)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v: %s", flags, err, out)
		}
		return string(out)
	}

	type row struct {
		Topic         string
		Records       int64
		Bytes         int64
		BytesPerOrder float64
		Types         []struct {
			Type           string
			Records, Bytes int64
		}
	}
	rows := func(flags ...string) map[string]row {
		var all []row
		if err := json.Unmarshal([]byte(describe(append(flags, "--json")...)), &all); err != nil {
			t.Fatal(err)
		}
		byTopic := map[string]row{}
		for _, r := range all {
			byTopic[r.Topic] = r
		}
		return byTopic
	}
	for topic, r := range rows() {
		if r.Types != nil || r.BytesPerOrder != 0 || (r.Records > 0) != (r.Bytes > 0) {
			t.Errorf("%s: %+v", topic, r)
		}
	}
	counted := rows("--records")
	for topic, want := range map[string]map[string]int64{
		eventlog.Orders:   {order.TypeOrderPlaced: 2, order.TypeOrderPaid: 2},
		eventlog.Payments: {payment.TypePaymentRequested: 1},
	} {
		r := counted[topic]
		size, found := int64(0), 0
		for _, x := range r.Types {
			if x.Bytes <= 0 || x.Type != eventlog.ShardClaimed && x.Records != want[x.Type] {
				t.Errorf("%s: %+v", topic, x)
			}
			size += x.Bytes
			found++
		}
		if found != len(want)+1 { // and the claims
			t.Errorf("%s: %+v: %d types take %d bytes", topic, r, found, size)
		}
		if d := r.BytesPerOrder - float64(size)/2; d < -0.1 || d > 0.1 {
			t.Errorf("%s: %v bytes per order of %d bytes and 2 orders", topic, r.BytesPerOrder, size)
		}
	}

	if text := describe(); !regexp.MustCompile(`(?m)^TOPIC .* RECORDS +BYTES +PROBLEMS$`).MatchString(text) || strings.Contains(text, order.TypeOrderPaid) {
		t.Error(text)
	}
	if text := describe("--records"); !regexp.MustCompile(`(?m)^orders +ORDER_PLACED +2 +\d+ +[\d.]+$`).MatchString(text) || !regexp.MustCompile(`(?m)^all +\d+ +\d+ +[\d.]+$`).MatchString(text) {
		t.Error(text)
	}
}

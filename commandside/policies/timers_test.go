package policies

import (
	"encoding/json"
	"testing"
	"time"
)

// Timers are rows in Postgres that an older build may have written: the names of
// their fields never change.
func TestTimersOfOlderBuildsAreRead(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	why := cause{ID: "e-1", CorrelationID: "c-1", Traceparent: "00-1-2-01"}
	const whyText = `"cause":{"id":"e-1","correlationId":"c-1","traceparent":"00-1-2-01"}`
	refundText := `{"aggregateId":"o-1","paymentId":"pay_1","since":"2026-03-01T12:00:00Z",` + whyText + `}`
	reconcileText := `{"gatewayOrderId":"order_1","endedAt":"2026-03-01T12:00:00Z","asked":1,` + whyText + `}`
	refund := refundTimer{AggregateID: "o-1", PaymentID: "pay_1", Since: at, Cause: why}
	reconcile := reconcileTimer{GatewayOrderID: "order_1", EndedAt: at, Asked: 1, Cause: why}
	for text, timer := range map[string]any{refundText: refund, reconcileText: reconcile} {
		if b, err := json.Marshal(timer); err != nil || string(b) != text {
			t.Errorf("%T is %s, %v, want %s", timer, b, err, text)
		}
	}
	var gotRefund refundTimer
	if err := json.Unmarshal([]byte(refundText), &gotRefund); err != nil || gotRefund != refund {
		t.Errorf("read %+v, %v", gotRefund, err)
	}
	var gotReconcile reconcileTimer
	if err := json.Unmarshal([]byte(reconcileText), &gotReconcile); err != nil || gotReconcile != reconcile {
		t.Errorf("read %+v, %v", gotReconcile, err)
	}
}

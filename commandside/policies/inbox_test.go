package policies_test

import (
	"testing"

	"tomato/commandside/commandsidetest"
)

// An order's deadline waits for the webhooks that were there when it came, and
// for no later ones.
func TestInboxPassed(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	progress := w.Policies.Inbox.(*commandsidetest.InboxProgress)
	passed := func(want bool) {
		t.Helper()
		if got, err := w.Policies.InboxPassed(t.Context(), "order_1"); got != want || err != nil {
			t.Errorf("passed = %v, %v, want %v", got, err, want)
		}
	}
	passed(true) // an idle partition
	for range 2 {
		w.Webhook(commandsidetest.Captured("order_1", "pay_1", 1, "INR"))
	}
	passed(false)
	progress.Next = 1
	w.Webhook(commandsidetest.Captured("order_1", "pay_1", 1, "INR"))
	passed(false)
	progress.Next = 2
	passed(true)
	passed(false) // asked anew: there is a third
	progress.Next = 3
	passed(true)
}

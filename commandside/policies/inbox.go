package policies

import (
	"context"
	"fmt"
	"sync"

	"tomato/eventlog"
)

// InboxProgress reports how far record-payment has read the inbox.
type InboxProgress interface {
	// Passed reports whether the consumer has passed offset in the partition and
	// has no parked event of key there.
	Passed(ctx context.Context, consumer, topic string, partition int32, offset int64, key string) (bool, error)
}

// InboxPassed reports whether record-payment has handled every webhook of the
// gateway order that was in the inbox at the first call for this gateway order. It
// is false while one of them is parked. Webhooks that come after the first call do
// not matter: on a busy partition the answer would never be true. The error is
// eventlog.ErrUnavailable if the brokers do not tell the end of the partition.
func (p *Policies) InboxPassed(ctx context.Context, gatewayOrderID string) (bool, error) {
	partition := eventlog.PartitionFor(gatewayOrderID, p.Partitions)
	end, marked := p.marks.mark(gatewayOrderID)
	if !marked {
		ends, err := eventlog.EndOffsets(ctx, p.Client, eventlog.PaymentWebhooks)
		if err != nil {
			return false, eventlog.Unavailable(fmt.Errorf("end of %s/%d is not known: %w", eventlog.PaymentWebhooks, partition, err))
		}
		var ok bool
		if end, ok = ends[eventlog.TopicPartition{Topic: eventlog.PaymentWebhooks, Partition: partition}]; !ok {
			return false, eventlog.Unavailable(fmt.Errorf("%s has no partition %d", eventlog.PaymentWebhooks, partition))
		}
		p.marks.setMark(gatewayOrderID, end)
	}
	passed, err := p.Inbox.Passed(ctx, recordPaymentPolicy, eventlog.PaymentWebhooks, partition, end-1, gatewayOrderID)
	if passed {
		p.marks.forget(gatewayOrderID)
	}
	return passed, err
}

// inboxMarks keeps, for each gateway order, the end offset that its inbox
// partition had when InboxPassed was first asked about it. Losing the marks is
// harmless: the next call sets a new one.
type inboxMarks struct {
	mu   sync.Mutex
	ends map[string]int64
}

const maxInboxMarks = 1 << 16

func (m *inboxMarks) mark(gatewayOrderID string) (int64, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	end, ok := m.ends[gatewayOrderID]
	return end, ok
}

func (m *inboxMarks) setMark(gatewayOrderID string, end int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ends == nil || len(m.ends) >= maxInboxMarks {
		m.ends = map[string]int64{}
	}
	m.ends[gatewayOrderID] = end
}

func (m *inboxMarks) forget(gatewayOrderID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.ends, gatewayOrderID)
}

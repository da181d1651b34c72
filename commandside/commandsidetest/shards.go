package commandsidetest

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tomato/commandside/shard"
	"tomato/domain/payment"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

const archiveAfter = 720 * time.Hour

// Shards are the real shards, which a test can make unavailable. They keep where
// each event was appended.
type Shards struct {
	real *shard.Shards
	read *PaymentsReadModel

	mu          sync.Mutex
	unavailable bool
	positions   []eventlog.Position
}

func startShards(t *testing.T, cfg eventlog.Config, read *PaymentsReadModel) *Shards {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	menus := shard.NewMenus()
	menus.Ends = eventlog.NewEnds(eventlogtest.Client(t, cfg))
	s, err := shard.NewShards(shard.Config{Kafka: cfg, Partitions: Partitions, Menus: menus, PaymentGrace: time.Hour, ArchiveAfter: archiveAfter,
		InboxPassed: func(context.Context, string) (bool, error) { return true, nil },
		ClusterKeys: []string{"of the command side's tests, 32 bytes"}, Registry: prometheus.NewRegistry(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.Handler())
	t.Cleanup(server.Close)
	s.URL = server.URL
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := menus.Run(ctx, cfg, log); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return &Shards{real: s, read: read}
}

// SetUnavailable makes every command fail with shard.ErrUnavailable, or not any more.
func (s *Shards) SetUnavailable(unavailable bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unavailable = unavailable
}

// Execute implements shard.Executor.
func (s *Shards) Execute(ctx context.Context, r shard.Request) (shard.Result, error) {
	s.mu.Lock()
	unavailable := s.unavailable
	s.mu.Unlock()
	if unavailable {
		return shard.Result{}, shard.ErrUnavailable
	}
	res, err := s.real.Execute(ctx, r)
	if err == nil && res.Event != nil {
		tp := eventlog.TopicPartition{Topic: r.Topic, Partition: eventlog.PartitionFor(r.ID, Partitions)}
		s.mu.Lock()
		s.positions = append(s.positions, eventlog.Position{TopicPartition: tp, Offset: res.Token()[tp]})
		s.mu.Unlock()
		if requested, ok := res.Event.(payment.PaymentRequested); ok {
			s.read.add(requested.GatewayOrderID, r.ID)
		}
	}
	return res, err
}

// appended returns where the events were appended, in the order of their acknowledgements.
func (s *Shards) appended() []eventlog.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.positions)
}

// PaymentsReadModel is the payments read model. A test can make it late,
// unavailable or forgetful.
type PaymentsReadModel struct {
	mu          sync.Mutex
	orders      map[string]string // by gateway order
	behind      bool
	waits       int
	unavailable bool
}

func (m *PaymentsReadModel) add(gatewayOrderID, orderID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.orders[gatewayOrderID] = orderID
}

// SetBehind makes the read model know nothing until somebody waits for it.
func (m *PaymentsReadModel) SetBehind(behind bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.behind = behind
}

// SetUnavailable makes every question fail with eventlog.ErrBehind, or not any more.
func (m *PaymentsReadModel) SetUnavailable(unavailable bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unavailable = unavailable
}

// Forget makes the read model lose a gateway order.
func (m *PaymentsReadModel) Forget(gatewayOrderID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.orders, gatewayOrderID)
}

// Waits returns how often somebody waited for the read model to pass a token.
func (m *PaymentsReadModel) Waits() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.waits
}

// OrderOf implements policies.GatewayOrders.
func (m *PaymentsReadModel) OrderOf(_ context.Context, gatewayOrderID string, after eventlog.Token) (string, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unavailable {
		return "", false, eventlog.ErrBehind
	}
	if after != nil {
		m.waits++
	} else if m.behind {
		return "", false, nil
	}
	id, ok := m.orders[gatewayOrderID]
	return id, ok, nil
}

// InboxProgress says that record-payment has passed all records of the inbox
// before Next.
type InboxProgress struct{ Next int64 }

// Passed implements policies.InboxProgress.
func (p *InboxProgress) Passed(_ context.Context, consumer, topic string, _ int32, offset int64, _ string) (bool, error) {
	return consumer == "record-payment" && topic == eventlog.PaymentWebhooks && p.Next > offset, nil
}

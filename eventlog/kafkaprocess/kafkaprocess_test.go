package kafkaprocess_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/kafkaprocess"
)

func TestPomNamesTheVersion(t *testing.T) {
	t.Parallel()
	pom, err := os.ReadFile("pom.xml")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(pom), "<version>"+kafkaprocess.Version+"</version>") {
		t.Errorf("pom.xml fetches another version than %s", kafkaprocess.Version)
	}
}

func TestRecordsAndAddressStayThroughKillPauseAndStop(t *testing.T) {
	t.Parallel()
	p := eventlogtest.KafkaProcess(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cfg := eventlog.Config{Brokers: []string{p.Addr()}}
	client := eventlogtest.Client(t, cfg)
	adm := kadm.NewClient(client)
	if _, err := adm.CreateTopic(ctx, 1, 1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	produce := func() error { return client.ProduceSync(ctx, &kgo.Record{Topic: "t", Value: []byte("x")}).FirstErr() }
	again := func() {
		t.Helper()
		q, err := kafkaprocess.Start(ctx, p.Dir(), eventlogtest.Options)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(q.Kill)
		if q.Addr() != p.Addr() {
			t.Fatalf("was at %s, is at %s", p.Addr(), q.Addr())
		}
		p = q
	}
	if err := produce(); err != nil {
		t.Fatal(err)
	}
	p.Kill()
	if p.Err() == nil {
		t.Error("a kill is no clean end")
	}
	again()
	if err := produce(); err != nil {
		t.Fatal(err)
	}

	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	acked := make(chan error, 1)
	go func() { acked <- produce() }()
	select {
	case err := <-acked:
		t.Errorf("a paused broker answered: %v", err)
	case <-time.After(300 * time.Millisecond): // there is no event to wait for
	}
	if err := p.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := <-acked; err != nil {
		t.Fatal(err)
	}

	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	again()
	ends, err := adm.ListEndOffsets(ctx, "t")
	if err != nil {
		t.Fatal(err)
	}
	if end, _ := ends.Lookup("t", 0); end.Offset != 3 {
		t.Errorf("%d records, want 3", end.Offset)
	}
}

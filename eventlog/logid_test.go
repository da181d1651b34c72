package eventlog_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

func readLogID(t *testing.T, cfg eventlog.Config) eventlog.LogID {
	t.Helper()
	id, err := eventlog.ReadLogID(t.Context(), eventlogtest.Client(t, cfg))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestTheLogIDOutlivesARestartAndNotTheData(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var ids []eventlog.LogID
	for _, d := range []string{dir, dir, t.TempDir()} {
		b, err := eventlog.StartBroker(d, "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		cfg := eventlog.Config{Brokers: []string{b.Addr()}}
		eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 2})
		ids = append(ids, readLogID(t, cfg))
		b.Close()
	}
	if ids[0] != ids[1] || ids[0] == ids[2] || ids[0] == (eventlog.LogID{}) {
		t.Errorf("the same data: %x and %x, other data: %x", ids[0], ids[1], ids[2])
	}
}

func TestTheLogIDIsOfTheTopics(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		if _, err := eventlog.ReadLogID(t.Context(), eventlogtest.Client(t, cfg)); err == nil {
			t.Error("logs that are not there have an id")
		}
		eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
		before := readLogID(t, cfg)
		if again := readLogID(t, cfg); again != before {
			t.Errorf("%x, then %x", before, again)
		}
		adm := kadm.NewClient(eventlogtest.Client(t, cfg))
		if _, err := adm.DeleteTopics(t.Context(), eventlog.Payments); err != nil {
			t.Fatal(err)
		}
		tick, end := time.NewTicker(10*time.Millisecond), time.After(time.Minute)
		defer tick.Stop()
		for { // the brokers delete a topic some time after they have answered
			rows, err := eventlog.Describe(t.Context(), adm, eventlog.Layout{Partitions: 1})
			if err != nil {
				t.Fatal(err)
			}
			missing := false
			for _, r := range rows {
				missing = missing || r.Topic == eventlog.Payments && r.Missing
			}
			if missing {
				break
			}
			select {
			case <-tick.C:
			case <-end:
				t.Fatal("the topic is not deleted within a minute")
			}
		}
		eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
		if after := readLogID(t, cfg); after == before {
			t.Error("a topic that was made anew has the same id")
		}
	})
}

func TestAClientsTokenIsOfItsLogs(t *testing.T) {
	t.Parallel()
	mine, other := eventlog.LogID{1, 2, 3, 4, 5, 6}, eventlog.LogID{1, 2, 3, 4, 5, 7}
	token := eventlog.Token{{Topic: eventlog.Orders, Partition: 3}: 17}
	text := mine.Format(token.String())
	if len(text) != 12 {
		t.Errorf("%q is not short", text)
	}
	sent, err := eventlog.ParseClientToken(text)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := sent.For(mine); err != nil || !cmp.Equal(token, got) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := sent.For(other); !errors.Is(err, eventlog.ErrUnknownToken) {
		t.Errorf("for other logs: %v, %v", got, err)
	}
	if mine.Format("") != "" {
		t.Error("a token of no positions has a text")
	}
	if sent, err := eventlog.ParseClientToken(""); err != nil {
		t.Error(err)
	} else if got, err := sent.For(mine); got != nil || err != nil {
		t.Errorf("no token asks for %v, %v", got, err)
	}
	for _, s := range []string{token.String(), text[:8], text[:11], "x", "!" + text[1:], text + "!", text + "A"} {
		if sent, err := eventlog.ParseClientToken(s); err == nil {
			t.Errorf("%q was taken: %+v", s, sent)
		}
	}
}

// requests counts the requests that a client sends to the brokers, by Kafka's number of
// the request.
type requests struct{ n [100]atomic.Int64 }

func (r *requests) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	r.n[key].Add(1)
}

const listOffsets = 2

// Ends finds that a position was never appended, but not for a position that was appended
// after the last request to the brokers. However many callers there are, it sends one
// request at a time.
func TestAPositionBeyondTheEndIsFoundOut(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 2})
		var sent requests
		ends := eventlog.NewEnds(eventlogtest.Client(t, cfg, kgo.WithHooks(&sent)))
		producer := eventlogtest.Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()))
		appendOne := func() eventlog.Token {
			r := producer.ProduceSync(t.Context(), &kgo.Record{Topic: eventlog.Orders, Partition: 1, Value: []byte("x")})
			if err := r.FirstErr(); err != nil {
				t.Fatal(err)
			}
			return eventlog.Token{{Topic: eventlog.Orders, Partition: 1}: r[0].Record.Offset}
		}
		unknown := func(token eventlog.Token) bool {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			watched, stop := ends.Watch(ctx, token)
			defer stop()
			<-watched.Done()
			return errors.Is(context.Cause(watched), eventlog.ErrUnknownToken)
		}
		appendOne()
		for name, token := range map[string]eventlog.Token{
			"the end itself": {{Topic: eventlog.Orders, Partition: 1}: 1},
			"an empty log":   {{Topic: eventlog.Riders, Partition: 0}: 0},
			"far beyond":     {{Topic: eventlog.Orders, Partition: 1}: 1 << 60},
			"no partition":   {{Topic: eventlog.Orders, Partition: 2}: 0},
			"one of two":     {{Topic: eventlog.Orders, Partition: 1}: 0, {Topic: eventlog.Feed, Partition: 0}: 7},
		} {
			if !unknown(token) {
				t.Errorf("%s was not found out", name)
			}
		}
		fresh := appendOne()
		watched, stop := ends.Watch(t.Context(), fresh)
		var wg sync.WaitGroup
		before := sent.n[listOffsets].Load()
		for range 300 { // they end long after the request about the new position was answered
			wg.Go(func() {
				if !unknown(eventlog.Token{{Topic: eventlog.Orders, Partition: 0}: 99}) {
					t.Error("not found out")
				}
			})
		}
		wg.Wait()
		if err := context.Cause(watched); err != nil {
			t.Error("what was appended is unknown:", err)
		}
		stop()
		if n := sent.n[listOffsets].Load() - before; n > 60 {
			t.Errorf("300 tokens took %d requests", n)
		}
	})
}

// While the brokers are unavailable, no position is found unknown.
func TestNothingIsUnknownWhileTheBrokersAreAway(t *testing.T) {
	t.Parallel()
	client := eventlogtest.Client(t, eventlog.Config{Brokers: []string{"127.0.0.1:1"}, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("unavailable")
	}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	watched, stop := eventlog.NewEnds(client).Watch(ctx, eventlog.Token{{Topic: eventlog.Orders}: 1})
	defer stop()
	<-watched.Done()
	if err := context.Cause(watched); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	var none *eventlog.Ends
	if same, stop := none.Watch(ctx, nil); same != ctx {
		t.Error("no ends watch")
	} else {
		stop()
	}
}

// FuzzToken: what a client sends is refused, or it is a token that is the same after it
// has been written and read again.
func FuzzToken(f *testing.F) {
	mine := eventlog.LogID{1, 2, 3, 4, 5, 6}
	f.Add(mine.Format(eventlog.Token{{Topic: eventlog.Orders, Partition: 3}: 17, {Topic: eventlog.Feed}: 1 << 40}.String()))
	f.Add("AQIDBAUG")
	f.Add("AQIDBAUGAAEJ")
	f.Add("AQIDBAUGAP________________8BAA")
	f.Fuzz(func(t *testing.T, s string) {
		sent, err := eventlog.ParseClientToken(s)
		if err != nil {
			return
		}
		token, err := sent.For(mine)
		if err != nil {
			if !errors.Is(err, eventlog.ErrUnknownToken) {
				t.Fatal(err)
			}
			return
		}
		if len(token) > 64 {
			t.Fatalf("%d positions", len(token))
		}
		for tp, o := range token {
			if tp.Topic == "" || tp.Partition < 0 || o < 0 {
				t.Fatalf("%v at %d", tp, o)
			}
		}
		again, err := eventlog.ParseClientToken(mine.Format(token.String()))
		if err != nil {
			t.Fatal(err)
		}
		if back, err := again.For(mine); err != nil || len(token) > 0 && !cmp.Equal(token, back) {
			t.Fatalf("%v came back as %v, %v", token, back, err)
		}
	})
}

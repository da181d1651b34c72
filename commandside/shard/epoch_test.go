package shard

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/domain/rider"
	"tomato/eventlog"
)

// The epoch is in an owner record and in a claim from the second one on. The signature
// is that of a record without it, because older builds check it.
func TestTheEpochOnTheWire(t *testing.T) {
	t.Parallel()
	const key = "0123456789abcdef0123456789abcdef"
	for file, epoch := range map[string]int{"testdata/shard-owner.json": 1, "testdata/shard-owner-epoch2.json": 2} {
		o := Owner{Shard: 3, Term: 7, Claim: 1234, Owner: "0b0e4f54-96b5-4c6e-9a53-3c1a2f6f0f11", URL: "http://10.0.0.7:8080", Epoch: epochOnWire(epoch)}.signed(key)
		got, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if want = bytes.TrimSpace(want); !bytes.Equal(got, want) {
			t.Errorf("it is %s, want %s", got, want)
		}
		if back, reason := readOwner(want, 3, key); reason != "" || back.epoch() != epoch {
			t.Errorf("%s is read as %+v, %q", file, back, reason)
		}
	}
	for epoch, want := range map[int]string{1: `{"term":4,"owner":"a","build":"b"}`, 2: `{"term":4,"owner":"a","build":"b","epoch":2}`} {
		if got, err := json.Marshal(claimData{Term: 4, Owner: "a", Build: "b", Epoch: epochOnWire(epoch)}); err != nil || string(got) != want {
			t.Errorf("the claim is %s, %v, want %s", got, err, want)
		}
	}
}

// The lowest epoch is that of the oldest owner, and 1 while anything is not known.
func TestTheLowestEpochOfAllOwners(t *testing.T) {
	t.Parallel()
	at := func(shard int32, term int64, epoch int) Owner {
		return Owner{Shard: shard, Term: term, Owner: "of epoch " + strconv.Itoa(epoch), Epoch: epochOnWire(epoch)}
	}
	full := []Owner{at(0, 5, 3), at(1, 5, 2), at(2, 5, 3)}
	for what, c := range map[string]struct {
		known, candidates []Owner
		unread            bool
		lowest            int
		behind            []string // of epoch 3
	}{
		"nothing is known":                       {nil, nil, false, 1, []string{"the owner of 3 of 3 shards is not known"}},
		"one owner is not known":                 {full[:2], nil, false, 1, []string{"instance of epoch 2 has epoch 2", "the owner of 1 of 3 shards is not known"}},
		"all are known":                          {full, nil, false, 2, []string{"instance of epoch 2 has epoch 2"}},
		"the topic is not read to its end":       {full, nil, true, 1, []string{"the owners of the shards are not all read yet", "instance of epoch 2 has epoch 2"}},
		"an older one announces itself":          {full, []Owner{at(2, 6, 1)}, false, 1, []string{"instance of epoch 1 has epoch 1", "instance of epoch 2 has epoch 2"}},
		"an older one was the owner before":      {full, []Owner{at(2, 4, 1)}, false, 2, []string{"instance of epoch 2 has epoch 2"}},
		"a newer one announces itself":           {full, []Owner{at(1, 6, 3)}, false, 2, []string{"instance of epoch 2 has epoch 2"}},
		"the others are of builds before epochs": {[]Owner{at(0, 5, 3), at(1, 5, 1), at(2, 5, 1)}, nil, false, 1, []string{"instance of epoch 1 has epoch 1"}},
		"all have the same":                      {[]Owner{at(0, 5, 3), at(1, 5, 3), at(2, 5, 3)}, nil, false, 3, nil},
	} {
		o := newOwners(eventlog.Config{}, 3, []string{testClusterKey}, slog.New(slog.DiscardHandler))
		o.complete = !c.unread
		for _, n := range c.candidates {
			o.candidates[n.Shard] = append(o.candidates[n.Shard], n)
		}
		for _, n := range c.known {
			o.learn(n)
		}
		if lowest := o.lowest.Load(); lowest != int64(c.lowest) {
			t.Errorf("%s: the lowest epoch is %d, want %d", what, lowest, c.lowest)
		}
		if behind := o.behind(3); !slices.Equal(behind, c.behind) {
			t.Errorf("%s: behind are %q, want %q", what, behind, c.behind)
		}
	}
}

// An owner's epoch is believed only if its claim in the log has the same. A true record
// of an older build brings the epoch down at once.
func TestAnEpochIsBelievedAsTheClaimHasIt(t *testing.T) {
	t.Parallel()
	f := startForwarding(t)
	follower := f.startFollower(t)
	f.all(t, follower, "before")
	eventually(t, "all owners are read", func() bool {
		follower.owners.mu.Lock()
		defer follower.owners.mu.Unlock()
		return follower.owners.complete && len(follower.owners.known) == int(f.Partitions)
	})
	known, _, _ := follower.owners.owner(0)
	forged := known
	forged.Epoch = 2
	forged = forged.signed(testClusterKey)
	if err := findClaim(t.Context(), f.cfg, forged); !errors.Is(err, errNoClaim) {
		t.Errorf("the claim of the first epoch is found for the second: %v", err)
	}
	if err := findClaim(t.Context(), f.cfg, known); err != nil {
		t.Errorf("the claim is not found: %v", err)
	}
	if st := follower.Epoch(); st.Build != BuildEpoch || st.Written != 1 {
		t.Errorf("the epochs are %+v", st)
	}

	// As if this were a later build, and all others too.
	for p := range f.Partitions {
		n, _, _ := follower.owners.owner(p)
		n.Epoch, n.Term = 2, n.Term+1
		follower.owners.learn(n)
	}
	if lowest := follower.owners.lowest.Load(); lowest != 2 {
		t.Fatalf("the lowest epoch is %d", lowest)
	}
	older := known
	older.Term, older.Owner, older.Claim = known.Term+2, "older", known.Claim+1_000_000
	b, err := json.Marshal(older.signed(testClusterKey))
	if err != nil {
		t.Fatal(err)
	}
	produce(t, f.cfg, &kgo.Record{Topic: eventlog.ShardOwners, Partition: 0, Key: []byte("0"), Value: b, Timestamp: time.Now()})
	eventually(t, "the older build is seen", func() bool { return follower.owners.lowest.Load() == 1 })
	// Its claim is not in the log, so it is ignored in the end.
	eventually(t, "the older build is ignored", func() bool { return follower.owners.lowest.Load() == 2 })
}

// The setting takes the place of what the owners say.
func TestTheEpochCanBeSet(t *testing.T) {
	t.Parallel()
	cfg := Config{Kafka: eventlog.Config{Brokers: []string{"127.0.0.1:1"}}, Partitions: 2, Menus: NewMenus(), ClusterKeys: []string{testClusterKey},
		Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), EventEpoch: BuildEpoch + 1}
	if s, err := NewShards(cfg); err == nil {
		s.closeProducer()
		t.Error("an epoch that the build does not know is accepted")
	}
	cfg.EventEpoch = 1
	s, err := NewShards(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.closeProducer)
	s.epoch = 2 // as if this were a later build
	for p := range s.Partitions {
		s.owners.learn(Owner{Shard: p, Term: 1, Epoch: 2, Owner: "a"})
	}
	s.owners.complete = true
	s.owners.setLowest()
	if st := s.Epoch(); st.Written != 1 || len(st.Behind) != 1 || !strings.Contains(st.Behind[0], "TOMATO_EVENT_EPOCH is 1") {
		t.Errorf("%+v", st)
	}
	s.EventEpoch = 0
	if st := s.Epoch(); st.Written != 2 || st.Behind != nil {
		t.Errorf("%+v", st)
	}
}

// The refusal of a command whose event waits for an upgrade reaches the caller over the
// owner. A build from before epochs, which forwards a command, takes it for a 503.
func TestAnUpgradeInProgressTravels(t *testing.T) {
	t.Parallel()
	want := &UpgradeInProgress{Type: "RIDER_REVIEWED", Epoch: 2, Behind: []string{"instance a has epoch 1"}}
	_, err := forwardTo(t, func(w http.ResponseWriter) { writeAnswer(w, http.StatusServiceUnavailable, upgradeAnswer{want}) })
	var got *UpgradeInProgress
	if !errors.As(err, &got) || got.Detail() != want.Detail() || !errors.Is(err, ErrUnavailable) {
		t.Errorf("it is %v", err)
	}
	for _, part := range []string{"RIDER_REVIEWED", "epoch 2", "instance a has epoch 1"} {
		if !strings.Contains(want.Detail(), part) {
			t.Errorf("the detail does not say %q: %s", part, want.Detail())
		}
	}
	want.Behind = []string{"1", "2", "3", "4", "5", "6", "7"}
	if d := want.Detail(); !strings.Contains(d, "5, and 2 more.") || strings.Contains(d, "6,") {
		t.Errorf("a long list is shown as: %s", d)
	}
}

// The owner's answer that it cannot read an event of the aggregate reaches the caller,
// too. There was a defect: the caller was told that the shard is unavailable.
func TestAnUnknownEventIsForwarded(t *testing.T) {
	t.Parallel()
	want := &UnknownEvent{Topic: eventlog.Riders, ID: "k1", Type: "RIDER_VERIFIED/2"}
	_, err := forwardTo(t, func(w http.ResponseWriter) {
		b, err := encodeAnswer(Result{}, want)
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(b)
	})
	if !isUnknown(err, "RIDER_VERIFIED/2") || errors.Is(err, ErrUnavailable) {
		t.Errorf("it is %v", err)
	}
}

// A command that an owner of a newer build has decided has succeeded, although this build
// does not know the event.
func TestTheAnswerOfANewerOwnerIsASuccess(t *testing.T) {
	t.Parallel()
	for _, event := range []string{`"eventType":"RIDER_REVIEWED","eventData":{}`, `"eventType":"RIDER_VERIFIED","eventVersion":2,"eventData":{"rider":"k1"}`} {
		res, err := forwardTo(t, func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, `{"status":200,"rider":{"riderId":"k1","version":3},`+event+`}`)
		})
		if err != nil || res.Event != nil || res.Rider == nil || res.Rider.Version != 3 {
			t.Errorf("%s: %+v, %v", event, res, err)
		}
	}
}

// forwardTo forwards a command to an owner that gives this answer.
func forwardTo(t *testing.T, answer func(w http.ResponseWriter)) (Result, error) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		answer(w)
	}))
	t.Cleanup(server.Close)
	s, err := NewShards(Config{Kafka: eventlog.Config{Brokers: []string{"127.0.0.1:1"}}, Partitions: 1, Menus: NewMenus(), ClusterKeys: []string{testClusterKey},
		Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.closeProducer)
	return s.forward(t.Context(), Owner{URL: server.URL}, Request{Topic: eventlog.Riders, ID: "k1", Actor: domain.SystemActor, Command: rider.Verify{}})
}

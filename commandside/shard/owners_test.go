package shard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// The format of an owner record must not change, because instances of two builds run
// side by side.
func TestAnOwnersRecordIsFixed(t *testing.T) {
	t.Parallel()
	o := Owner{Shard: 3, Term: 7, Claim: 1234, Owner: "0b0e4f54-96b5-4c6e-9a53-3c1a2f6f0f11", URL: "http://10.0.0.7:8080"}.signed("0123456789abcdef0123456789abcdef")
	got, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/shard-owner.json")
	if err != nil {
		t.Fatal(err)
	}
	if want = bytes.TrimSpace(want); !bytes.Equal(got, want) {
		t.Errorf("it is %s, want %s", got, want)
	}
	if back, reason := readOwner(want, 3, "0123456789abcdef0123456789abcdef"); back != o || reason != "" {
		t.Errorf("it is read as %+v, %s", back, reason)
	}
}

// A record is an owner record only if an instance has signed it, for this shard.
func TestRecordsThatAreNoOwner(t *testing.T) {
	t.Parallel()
	good := Owner{Shard: 1, Term: 7, Claim: 9, Owner: "a", URL: "https://host:8080/base/"}
	encode := func(o Owner) []byte {
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if _, reason := readOwner(encode(good.signed(testClusterKey)), 1, testClusterKey); reason != "" {
		t.Fatalf("the good one is %s", reason)
	}
	later := bytes.Replace(encode(good.signed(testClusterKey)), []byte("{"), []byte(`{"x":1,`), 1)
	if _, reason := readOwner(later, 1, testClusterKey); reason != "" {
		t.Errorf("one of a later build, which says more, is %s", reason)
	}
	signed := func(change func(*Owner)) []byte {
		o := good
		change(&o)
		return encode(o.signed(testClusterKey))
	}
	changed := func(change func(*Owner)) []byte {
		o := good.signed(testClusterKey)
		change(&o)
		return encode(o)
	}
	for what, c := range map[string]struct {
		record []byte
		reason string
	}{
		"nothing":        {nil, ignoredMalformed},
		"no JSON":        {[]byte("x"), ignoredMalformed},
		"null":           {[]byte("null"), ignoredMalformed},
		"unsigned":       {encode(good), ignoredSignature},
		"another key":    {encode(good.signed("another key of thirty-two bytes..")), ignoredSignature},
		"another term":   {changed(func(o *Owner) { o.Term = 9e18 }), ignoredSignature},
		"another claim":  {changed(func(o *Owner) { o.Claim++ }), ignoredSignature},
		"another owner":  {changed(func(o *Owner) { o.Owner = "b" }), ignoredSignature},
		"another URL":    {changed(func(o *Owner) { o.URL = "http://stranger" }), ignoredSignature},
		"another shard":  {signed(func(o *Owner) { o.Shard = 2 }), ignoredMalformed},
		"no term":        {signed(func(o *Owner) { o.Term = 0 }), ignoredMalformed},
		"no offset":      {signed(func(o *Owner) { o.Claim = -1 }), ignoredMalformed},
		"no owner":       {signed(func(o *Owner) { o.Owner = "" }), ignoredMalformed},
		"two lines":      {signed(func(o *Owner) { o.Owner = "a\nb" }), ignoredMalformed},
		"no URL":         {signed(func(o *Owner) { o.URL = "" }), ignoredMalformed},
		"another scheme": {signed(func(o *Owner) { o.URL = "ftp://host" }), ignoredMalformed},
		"no host":        {signed(func(o *Owner) { o.URL = "http:///x" }), ignoredMalformed},
		"only a port":    {signed(func(o *Owner) { o.URL = "http://:8080" }), ignoredMalformed},
		"a password":     {signed(func(o *Owner) { o.URL = "http://u:p@host" }), ignoredMalformed},
		"a query":        {signed(func(o *Owner) { o.URL = "http://host?x=1" }), ignoredMalformed},
		"a fragment":     {signed(func(o *Owner) { o.URL = "http://host#x" }), ignoredMalformed},
		"too long":       {append(encode(good.signed(testClusterKey)), bytes.Repeat([]byte(" "), maxOwnerRecord)...), ignoredMalformed},
	} {
		if o, reason := readOwner(c.record, 1, testClusterKey); reason != c.reason || o != (Owner{}) {
			t.Errorf("%s: %+v, %q, want %q", what, o, reason, c.reason)
		}
	}
}

// startFollower starts an instance that serves no shards.
func (f forwarding) startFollower(t *testing.T) *Shards {
	t.Helper()
	s, err := NewShards(Config{Kafka: f.cfg, Partitions: f.Partitions, Menus: NewMenus(), ClusterKeys: []string{testClusterKey}, Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Follow(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

// all sends a command to every shard through an instance, and requires an answer.
func (f forwarding) all(t *testing.T, through *Shards, name string) {
	t.Helper()
	for n := 1; n <= 6; n++ {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		id := fmt.Sprint("x", n)
		res, err := through.Execute(ctx, Request{Topic: eventlog.Riders, ID: id, Actor: domain.SystemActor, Command: rider.Put{RiderID: id, Name: subjectkeystest.Name(id, name)}})
		cancel()
		if err != nil || res.Rider.Name != subjectkeystest.Name(id, name) {
			t.Fatalf("%s of %s: %v", name, id, err)
		}
	}
}

// Anybody who can reach the brokers can write owner records. A record that no instance
// has signed, or whose claim is not in the log, changes nothing: commands still go to
// the true owner, also from an instance that reads the topic later.
func TestForgedOwnersChangeNothing(t *testing.T) {
	t.Parallel()
	f := startForwarding(t)
	var asked atomic.Int64
	stranger := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(stranger.Close)
	follower := f.startFollower(t)
	f.all(t, follower, "before")

	client, err := f.cfg.NewClient(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	const forged = 9_000_000_000_000_000_000
	written := 0
	for p := range f.Partitions {
		known, _, _ := follower.owners.owner(p)
		with := func(change func(*Owner)) Owner {
			o := known
			o.URL, o.Term = stranger.URL, forged
			change(&o)
			return o
		}
		sign := func(change func(*Owner)) Owner { return with(change).signed(testClusterKey) }
		for _, o := range []Owner{
			with(func(o *Owner) { o.Signature = "" }),
			with(func(*Owner) {}), // with the signature of the true record
			with(func(*Owner) {}).signed("another key of thirty-two bytes.."),
			sign(func(o *Owner) { o.Term = known.Term - 1 }), // an old record, written again
			sign(func(*Owner) {}),                            // the log has a claim there, but with another term
			sign(func(o *Owner) { o.Term, o.Claim = known.Term+1, known.Claim+1_000_000 }),
			sign(func(o *Owner) { o.Term, o.Owner = known.Term+1, "another" }),
			sign(func(o *Owner) { o.Term, o.Claim = known.Term+2, 0 }),
			sign(func(o *Owner) { o.Shard = (p + 1) % f.Partitions }),
		} {
			b, err := json.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: eventlog.ShardOwners, Partition: p, Key: []byte(strconv.Itoa(int(p))), Value: b}).FirstErr(); err != nil {
				t.Fatal(err)
			}
			written++
		}
		// Compaction would keep only the last record. The signature does not cover the epoch,
		// so the last one here has a true signature. There was a defect: the owner took it for
		// its own record and did not repeat that, and an instance that came later, and read
		// this record alone, did not find the shard.
		later := known
		later.Epoch = BuildEpoch + 7
		changed, err := json.Marshal(later)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range [][]byte{nil, []byte("junk"), changed} {
			if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: eventlog.ShardOwners, Partition: p, Key: []byte(strconv.Itoa(int(p))), Value: b}).FirstErr(); err != nil {
				t.Fatal(err)
			}
			written++
		}
	}
	f.all(t, follower, "meanwhile")
	f.all(t, f.Shards, "at the owner itself")

	// The owner repeats its record once, and it is then the last one of the topic.
	last := func() (own int, ok bool) {
		n, lasts := 0, map[int32]Owner{}
		client, err := f.cfg.NewClient(kgo.ConsumeTopics(eventlog.ShardOwners), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		ends, err := eventlog.EndOffsets(t.Context(), client, eventlog.ShardOwners)
		if err != nil {
			t.Fatal(err)
		}
		var total int64
		for _, end := range ends {
			total += end
		}
		for read := int64(0); read < total; {
			fetches := client.PollFetches(t.Context())
			fetches.EachRecord(func(r *kgo.Record) {
				read++
				o, _ := readOwner(r.Value, r.Partition, testClusterKey)
				if lasts[r.Partition] = o; o.Owner == f.Instance && o.URL == f.URL && o.epoch() == BuildEpoch {
					n++
				}
			})
		}
		ok = true
		for p := range f.Partitions {
			ok = ok && lasts[p].Owner == f.Instance && lasts[p].URL == f.URL && lasts[p].epoch() == BuildEpoch
		}
		return n, ok
	}
	var own int
	eventually(t, "the owner is the last record of its shards", func() (ok bool) {
		own, ok = last()
		return ok
	})
	if own > written {
		t.Errorf("the owner wrote itself %d times for %d records of others", own, written)
	}

	// The claims of all signed records are looked up, and the records ignored, soon.
	eventually(t, "all claims are looked up", func() bool { return follower.considering() == 0 })
	f.all(t, follower, "afterwards")
	late := f.startFollower(t)
	f.all(t, late, "for who comes later")
	for p := range f.Partitions {
		for _, s := range []*Shards{f.Shards, follower, late} {
			if known, _, _ := s.owners.owner(p); known.Owner != f.Instance || known.URL != f.URL {
				t.Errorf("shard %d is thought to be at %+v", p, known)
			}
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the stranger was asked %d times", n)
	}
	for _, reason := range []string{ignoredMalformed, ignoredSignature, ignoredClaim} {
		if n := counterValue(f.registry, "tomato_shard_owner_records_ignored_total", reason); n == 0 {
			t.Errorf("no record is counted as %s", reason)
		}
	}
}

// A log that has lost its last claim is claimed again with the same term. An instance
// that knows the lost claim must find the new owner. There was a defect: it could not
// reach the shard until the next take-over.
func TestAnOwnerWhoseClaimIsLostIsForgotten(t *testing.T) {
	t.Parallel()
	f := startForwarding(t)
	follower := f.startFollower(t)
	f.all(t, follower, "before")
	for p := range f.Partitions {
		before, _, _ := follower.owners.owner(p)
		for _, term := range []int64{before.Term, before.Term + 1} {
			lost := Owner{Shard: p, Term: term, Claim: before.Claim + 1000, Owner: "lost", URL: "http://127.0.0.1:1"}.signed(testClusterKey)
			follower.owners.mu.Lock()
			follower.owners.known[p] = lost
			follower.owners.mu.Unlock()
			follower.owners.consider(before)
			for end := time.After(time.Minute); ; {
				now, _, changed := follower.owners.owner(p)
				if now == before {
					break
				}
				select {
				case <-changed:
				case <-end:
					t.Fatalf("shard %d, term %d: the lost owner is still known", p, term)
				}
			}
		}
		// An owner whose claim is in the log is not replaced by one with an older claim.
		follower.owners.consider(Owner{Shard: p, Term: before.Term, Claim: 0, Owner: "older", URL: "http://127.0.0.1:1"}.signed(testClusterKey))
	}
	eventually(t, "all claims are looked up", func() bool { return follower.considering() == 0 })
	f.all(t, follower, "afterwards")
	for p := range f.Partitions {
		if now, _, _ := follower.owners.owner(p); now.Owner != f.Instance {
			t.Errorf("shard %d is thought to be at %+v", p, now)
		}
	}
}

// A shard is unreachable if its owner is an earlier process at this instance's address.
func TestAPredecessorAtTheSameAddressServesNothing(t *testing.T) {
	t.Parallel()
	s, err := NewShards(Config{Kafka: eventlog.Config{Brokers: []string{"127.0.0.1:1"}}, Partitions: 2, URL: "http://127.0.0.1:2", Menus: NewMenus(), ClusterKeys: []string{testClusterKey},
		Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.closeProducer)
	s.owners.learn(Owner{Shard: 0, Term: 1, Owner: "before", URL: s.URL})
	s.owners.learn(Owner{Shard: 1, Term: 1, Owner: "other", URL: "http://127.0.0.1:3"})
	if got := s.Unreachable(); len(got) != 1 || got[0] != 0 {
		t.Errorf("out of reach are %v, want shard 0 alone", got)
	}
}

// considering returns how many claims are being looked up.
func (s *Shards) considering() (n int) {
	s.owners.mu.Lock()
	defer s.owners.mu.Unlock()
	for _, c := range s.owners.candidates {
		n += len(c)
	}
	return n
}

// An owner that answers with a redirect counts as one that does not answer. The command
// is sent once, to the owner alone, and without the cluster key.
func TestARedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	var elsewhere atomic.Int64
	target := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	t.Cleanup(target.Close)
	var got []string
	owner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := httputil.DumpRequest(r, true)
		got = append(got, string(b))
		http.Redirect(w, r, target.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	t.Cleanup(owner.Close)
	s, err := NewShards(Config{Kafka: eventlog.Config{Brokers: []string{"127.0.0.1:1"}}, Partitions: 1, Menus: NewMenus(), ClusterKeys: []string{testClusterKey},
		Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.closeProducer)
	s.owners.learn(Owner{Shard: 0, Term: 1, Owner: "a", URL: owner.URL})
	_, err = s.Execute(t.Context(), validCommands()["place"])
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if len(got) != 1 || strings.Contains(strings.Join(got, ""), testClusterKey) {
		t.Errorf("the owner got %q", got)
	}
	if n := elsewhere.Load(); n != 0 {
		t.Errorf("the other one got %d requests", n)
	}
}

// eventually waits until so returns true, and ends the test if it does not within a
// minute.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	tick, end := time.NewTicker(20*time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

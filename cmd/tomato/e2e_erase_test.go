package main_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/cmd/tomato/servertest"
	"tomato/domain/order"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/kafkaprocess"
)

// Words that occur nowhere else, and so can be searched for on the disks.
const (
	secretAddress      = "17 Quetzalcoatlus Crescent"
	secretInstructions = "knock thrice for Xylophonist"
	secretLng          = 77.123456789
	secretLat          = 12.987654321
	secretRider        = "Zephyrine Quibbletoe"
	secretEmail        = "quark.plover@example.org"
	secretContact      = "+919988776655"
	secretDead         = "walrus.gazette@example.org" // in a webhook that cannot be decoded
	secretReason       = "my aunt Wilhelmina Quince is ill"
)

var secretWords = []string{secretAddress, secretInstructions, "77.123456789", "12.987654321", secretRider, secretEmail, secretContact, secretDead, secretReason}

// onDisk returns which of the words are in the files of the directories.
func onDisk(t *testing.T, words map[string][]byte, dirs ...string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // a file that the broker has just deleted
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			for name, word := range words {
				if bytes.Contains(b, word) {
					found[name] = path
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// inRecords returns which of the words are in a record of any topic. Batches are
// compressed, so that a text may be on the disk in another form.
func inRecords(t *testing.T, words map[string][]byte, kafka eventlog.Config) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), servertest.Patience)
	defer cancel()
	client := eventlogtest.Client(t, kafka, kgo.ConsumeRegex(), kgo.ConsumeTopics(".*"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	left := map[string]map[int32]int64{} // ends that were not reached yet
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 && !strings.HasPrefix(o.Topic, "__") { // without Kafka's own
			if left[o.Topic] == nil {
				left[o.Topic] = map[int32]int64{}
			}
			left[o.Topic][o.Partition] = o.Offset
		}
	})
	found := map[string]string{}
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("not read: %v", left)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if end, ok := left[r.Topic][r.Partition]; ok && r.Offset >= end-1 {
				if delete(left[r.Topic], r.Partition); len(left[r.Topic]) == 0 {
					delete(left, r.Topic)
				}
			}
			all := [][]byte{r.Key, r.Value}
			for _, h := range r.Headers {
				all = append(all, h.Value)
			}
			for name, word := range words {
				for _, b := range all {
					if bytes.Contains(b, word) {
						found[name] = fmt.Sprintf("%s/%d@%d", r.Topic, r.Partition, r.Offset)
					}
				}
			}
		})
	}
	return found
}

// inRows returns which of the words are in a row of any table. Postgres compresses large
// values.
func inRows(t *testing.T, words map[string][]byte, a *servertest.Installation) map[string]string {
	t.Helper()
	db := a.DB()
	defer db.Close()
	rows, err := db.Query(t.Context(), `SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(tables) < 10 {
		t.Fatalf("%d tables, %v", len(tables), err)
	}
	found := map[string]string{}
	for _, table := range tables {
		for name, word := range words {
			var n int
			if err := db.QueryRow(t.Context(), `SELECT count(*) FROM `+table+` t WHERE position($1::bytea in convert_to(t::text, 'UTF8')) > 0`, word).Scan(&n); err != nil {
				t.Fatal(err)
			}
			if n > 0 {
				found[name] = table
			}
		}
	}
	return found
}

// documentedKey unwraps a subject's key as docs/privacy.md describes it.
func documentedKey(t *testing.T, master []byte, record *kgo.Record) []byte {
	t.Helper()
	var v struct{ Wrapped string }
	if err := json.Unmarshal(record.Value, &v); err != nil {
		t.Fatal(err)
	}
	b, err := base64.RawURLEncoding.DecodeString(v.Wrapped)
	if err != nil {
		t.Fatal(err)
	}
	key, err := gcm(t, master, "tomato master key 1: wrapping").Open(nil, b[:12], b[12:], record.Key)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func gcm(t *testing.T, secret []byte, info string) cipher.AEAD {
	t.Helper()
	key, err := hkdf.Key(sha256.New, secret, nil, info, 32)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return aead
}

// TestErasedPeopleAreGone is the promise of docs/privacy.md. What is personal is on no
// disk in the clear, at no time; after an erasure and a compaction the keys are gone, and
// everything shows the people as erased, while everybody else's data and the money stay.
func TestErasedPeopleAreGone(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	options := eventlogtest.Options
	options.Properties = maps.Clone(options.Properties)
	options.Properties["log.cleaner.backoff.ms"] = "200"
	kafka, err := kafkaprocess.Start(ctx, filepath.Join(t.TempDir(), "kafka"), options)
	if errors.Is(err, kafkaprocess.ErrAbsent) && os.Getenv("TOMATO_REQUIRE_KAFKA") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kafka.Kill)
	pgDir := filepath.Join(t.TempDir(), "postgres")
	pg := servertest.Postgres(t, ctx, pgDir)
	master := bytes.Repeat([]byte{0xa7}, 32)
	a := servertest.NewOn(t, eventlog.Config{Brokers: []string{kafka.Addr()}, ClientID: t.Name()}, pg.URL(), "--master-key", hex.EncodeToString(master))
	var logged eventlogtest.LogText
	a.Options.Log = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	a.Start()

	// Two orders are delivered: one of the people who will be erased, one of others.
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	deliver := func(customer, rider, name, address, instructions string, lng, lat float64) (id, paymentID string) {
		t.Helper()
		a.Must(servertest.Rider(rider), "PUT /v1/riders/"+rider, map[string]any{"name": name})
		a.Must(servertest.Ops, "POST /v1/riders/"+rider+"/verify", nil)
		a.Must(servertest.Rider(rider), "POST /v1/riders/"+rider+"/online", nil)
		at := map[string]any{"location": servertest.Point(servertest.Lng, servertest.Lat)}
		a.Must(servertest.Rider(rider), "PUT /v1/riders/"+rider+"/location", at)
		basket := servertest.Basket("r1")
		basket["deliverTo"] = map[string]any{"location": servertest.Point(lng, lat), "address": address, "instructions": instructions}
		basket["externalReference"] = "ref-of-" + customer
		id = a.Must(servertest.Customer(customer), "POST /v1/orders", basket, "Idempotency-Key", "of-"+customer).Str("orderId")
		paymentID = "pay_" + customer
		hook := strings.Replace(string(servertest.Capture("payment.captured", a.OpenPayment(customer, id), paymentID, 50000)), `"notes":[]`,
			`"notes":[],"email":"`+secretEmail+`","contact":"`+secretContact+`","vpa":"`+secretEmail+`"`, 1)
		if !strings.Contains(hook, secretEmail) {
			t.Fatal(hook)
		}
		a.Webhook([]byte(hook)).Then(http.StatusOK)
		a.AwaitEvent(eventlog.Orders, id, order.TypeOrderPaid, 1)
		for _, step := range []string{"accept-order", "preparing", "ready"} {
			a.Must(servertest.Staff("r1"), "POST /v1/orders/"+id+"/"+step, nil)
		}
		a.Await("the rider has the order", func() error {
			if x := a.Do(servertest.Rider(rider), "POST /v1/orders/"+id+"/accept", nil); x.Status != http.StatusOK {
				return x.Fault()
			}
			return nil
		})
		a.Must(servertest.Rider(rider), "POST /v1/orders/"+id+"/pick-up", nil)
		a.Must(servertest.Rider(rider), "POST /v1/orders/"+id+"/deliver", nil)
		a.Must(servertest.Rider(rider), "POST /v1/riders/"+rider+"/offline", nil)
		return id, paymentID
	}
	const otherAddress = "3 Ordinary Street"
	mine, _ := deliver("cust1", "rider1", secretRider, secretAddress, secretInstructions, secretLng, secretLat)
	theirs, _ := deliver("cust2", "rider2", "Bo", otherAddress, "ring", 77.6, 12.97)
	cancelled := a.Must(servertest.Customer("cust1"), "POST /v1/orders", servertest.Basket("r1")).Str("orderId")
	if x := a.Must(servertest.Customer("cust1"), "POST /v1/orders/"+cancelled+"/cancel", map[string]any{"reason": secretReason}); x.Str("reason") != secretReason {
		t.Errorf("%s", x.Body)
	}
	a.Webhook([]byte(`{"event":"payment.captured","email":"` + secretDead + `"`)).Then(http.StatusOK)
	a.Await("the webhook is a dead letter", func() error {
		if n := a.Metric("tomato_consumer_dead", `consumer="record-payment"`); n != 1 {
			return fmt.Errorf("%v are dead", n)
		}
		return nil
	})
	a.Await("a snapshot is kept", func() error {
		if n := a.Metric("tomato_shard_snapshots_total", `outcome="kept"`); n < 1 {
			return fmt.Errorf("%v snapshots", n)
		}
		return nil
	})
	a.AwaitQuery(servertest.Customer("cust1"), "/v1/orders/"+mine, "status", "delivered", "deliverTo.address", secretAddress, "deliverTo.instructions", secretInstructions, "riderName", secretRider)
	a.AwaitQuery(servertest.Customer("cust2"), "/v1/orders/"+theirs, "status", "delivered", "deliverTo.address", otherAddress, "riderName", "Bo")
	a.AwaitIdle()
	paid := string(a.Must(servertest.Customer("cust1"), "GET /v1/payments/"+mine, nil).Body)

	// The keys, as an outside consumer reads them, and what they open.
	keys := map[string][]byte{}
	wrapped := map[string][]byte{}
	end, err := eventlog.EndOffsets(ctx, eventlogtest.Client(t, a.Kafka), eventlog.SubjectKeys)
	if err != nil {
		t.Fatal(err)
	}
	tp := eventlog.TopicPartition{Topic: eventlog.SubjectKeys}
	err = eventlog.Read(ctx, a.Kafka, map[eventlog.TopicPartition]eventlog.Range{tp: {To: end[tp]}}, func(e *eventlog.Event) error {
		subject := strings.Join(strings.Split(string(e.Record.Key), "/")[:2], "/")
		keys[subject] = documentedKey(t, master, e.Record)
		wrapped[subject] = []byte(strings.SplitN(string(e.Record.Value), `"wrapped":"`, 2)[1][:80])
		return nil
	})
	if err != nil || len(keys) != 5 { // two customers, two riders, the webhooks of this month
		t.Fatalf("the keys of %d subjects, %v", len(keys), err)
	}
	placed := a.History(eventlog.Orders, mine)[0]
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(servertest.Data(placed, "deliverTo").(string), "s1."))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := gcm(t, keys["customer/cust1"], "tomato subject key 1: encryption").Open(nil, raw[8:20], raw[20:], []byte("customer/cust1/deliverTo"))
	if err != nil || !bytes.Contains(plain, []byte(secretAddress)) {
		t.Errorf("opened as documented: %s, %v", plain, err)
	}

	// Nothing personal is on any disk or in the log, and no key in the clear. What is not
	// personal is found, so the search finds what is there.
	secrets := map[string][]byte{}
	for _, w := range secretWords {
		secrets[w] = []byte(w)
	}
	for subject, key := range keys {
		secrets["the key of "+subject] = key
	}
	sealed := []byte(servertest.Data(placed, "deliverTo").(string))
	nothing := func(when string) {
		t.Helper()
		db := a.DB()
		_, err := db.Exec(ctx, "CHECKPOINT") // so that everything is in the files
		db.Close()
		if err != nil {
			t.Fatal(err)
		}
		for name, file := range onDisk(t, secrets, kafka.Dir(), pgDir, a.Config.DataDir) {
			t.Errorf("%s: %s is in %s", when, name, file)
		}
		for _, found := range []map[string]string{inRecords(t, secrets, a.Kafka), inRows(t, secrets, a)} {
			for name, where := range found {
				t.Errorf("%s: %s is in %s", when, name, where)
			}
		}
		control := map[string][]byte{"ref": []byte("ref-of-cust1"), "the address, which is sealed": sealed}
		if len(inRecords(t, control, a.Kafka)) != len(control) || len(inRows(t, control, a)) != len(control) {
			t.Errorf("%s: what is not personal is not found in records or rows, so the search finds nothing", when)
		}
		if !strings.Contains(logged.String(), "the keys of customers and riders are read") {
			t.Errorf("%s: the log is not searched", when)
		}
		for name, word := range secrets {
			if strings.Contains(logged.String(), string(word)) {
				t.Errorf("%s: %s is in the log", when, name)
			}
		}
		if len(onDisk(t, control, pgDir)) == 0 || len(onDisk(t, map[string][]byte{"topic": []byte("payment-webhooks")}, kafka.Dir())) == 0 {
			t.Errorf("%s: what is not personal is not found on the disks, so the search finds nothing", when)
		}
	}
	nothing("before erasing")
	gone := map[string][]byte{}
	for _, subject := range []string{"customer/cust1", "rider/rider1", "webhooks/" + time.Now().UTC().Format("2006-01")} {
		gone[subject] = wrapped[subject]
	}
	if records, disk := inRecords(t, gone, a.Kafka), onDisk(t, gone, kafka.Dir()); len(records) != len(gone) || len(disk) != len(gone) {
		t.Errorf("before erasing, the keys are found in records %v and on the disk %v, want all three", records, disk)
	}
	everything := func(who string) string {
		t.Helper()
		id := map[string]string{"cust1": mine, "cust2": theirs}[who]
		return string(a.Must(servertest.Customer(who), "GET /v1/orders/"+id, nil).Body) + string(a.Must(servertest.Ops, "GET /v1/orders/"+id+"/events", nil).Body)
	}
	if shows := everything("cust1"); strings.Count(shows, secretAddress) != 3 || strings.Count(shows, `"riderName":"`+secretRider+`"`) != 2 {
		t.Errorf("before erasing: %s", shows)
	}
	a.AwaitQuery(servertest.Customer("cust1"), "/v1/orders/"+cancelled, "reason", secretReason)

	// Erase: the customer by the call, the rider and the webhooks by the command.
	x := a.Must(servertest.Ops, "POST /v1/ops/erasures", map[string]any{"customerId": "cust1", "reason": "asked by letter"})
	if x.Str("customerId") != "cust1" || x.Get("keys") != 1.0 || x.Str("by") != "ops:ops1" {
		t.Errorf("%s", x.Body)
	}
	if x = a.Must(servertest.Ops, "POST /v1/ops/erasures", map[string]any{"customerId": "cust1", "reason": "again"}); x.Get("keys") != 0.0 {
		t.Errorf("a repeat: %s", x.Body)
	}
	if said := a.Tool("erase", "--rider", "rider1"); !strings.Contains(said, "rider/rider1 is erased") {
		t.Error(said)
	}
	if said := a.Tool("erase", "--webhooks", time.Now().UTC().Format("2006-01"), "--json"); !strings.Contains(said, `"keys":1`) {
		t.Error(said)
	}
	a.Await("the server knows of all erasures", func() error {
		items, _ := a.Must(servertest.Ops, "GET /v1/ops/erasures?limit=4", nil).Get("items").([]any)
		if len(items) != 4 {
			return fmt.Errorf("%d", len(items))
		}
		for _, x := range items {
			if x, _ := x.(map[string]any); x["state"] != "completed" || x["completedAt"] == nil {
				return fmt.Errorf("%v", x)
			}
		}
		return nil
	})

	// Compaction takes the keys from the disk. Its settings are made shorter than an hour.
	adm := kadm.NewClient(eventlogtest.Client(t, a.Kafka))
	shorter := func(name, value string) kadm.AlterConfig { return kadm.AlterConfig{Name: name, Value: &value} }
	altered, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{shorter("segment.ms", "100"), shorter("max.compaction.lag.ms", "100"), shorter("min.cleanable.dirty.ratio", "0.0001"),
		shorter("delete.retention.ms", "100"), shorter("file.delete.delay.ms", "0")}, eventlog.SubjectKeys)
	if err == nil {
		_, err = altered.On(eventlog.SubjectKeys, func(r *kadm.AlterConfigsResponse) error { return r.Err })
	}
	if err != nil {
		t.Fatal(err)
	}
	marks := eventlogtest.Client(t, a.Kafka, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	a.Await("the destroyed keys have left the disk", func() error {
		if err := marks.ProduceSync(ctx, &kgo.Record{Topic: eventlog.SubjectKeys, Key: []byte("mark"), Value: []byte(`{"v":1}`)}).FirstErr(); err != nil {
			return err
		}
		if left := inRecords(t, gone, a.Kafka); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		if left := onDisk(t, gone, kafka.Dir()); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	if len(inRecords(t, map[string][]byte{"theirs": wrapped["customer/cust2"]}, a.Kafka)) == 0 {
		t.Error("the key of another customer is gone, too")
	}

	shownErased := func(when string) {
		t.Helper()
		for _, who := range []string{"cust1", "cust2"} {
			shows := everything(who)
			switch who {
			case "cust1":
				if strings.Count(shows, `"deliverTo":{"erased":true}`) != 3 || strings.Count(shows, `"riderName":"erased"`) != 2 || strings.Contains(shows, "s1.") {
					t.Errorf("%s: %s", when, shows)
				}
			default:
				if strings.Count(shows, otherAddress) != 3 || strings.Count(shows, `"riderName":"Bo"`) != 2 || strings.Contains(shows, "erased") {
					t.Errorf("%s: %s", when, shows)
				}
			}
		}
		if x := a.Must(servertest.Customer("cust1"), "GET /v1/orders/"+cancelled, nil); x.Str("reason") != "erased" {
			t.Errorf("%s: %s", when, x.Body)
		}
		if x := a.Must(servertest.Ops, "GET /v1/riders/rider1", nil); x.Str("name") != "erased" || x.Get("location") != nil {
			t.Errorf("%s: %s", when, x.Body)
		}
		if x := a.Must(servertest.Ops, "GET /v1/riders/rider2", nil); x.Str("name") != "Bo" || x.Get("location") == nil {
			t.Errorf("%s: %s", when, x.Body)
		}
		if now := string(a.Must(servertest.Customer("cust1"), "GET /v1/payments/"+mine, nil).Body); now != paid {
			t.Errorf("%s: the payment is %s, was %s", when, now, paid)
		}
	}
	a.AwaitIdle() // the tombstone of the position
	shownErased("after erasing")
	for _, model := range []string{"orders", "riders"} {
		if said := a.Tool("rebuild", model); !strings.Contains(said, " serves; it took ") {
			t.Errorf("rebuild %s said %s", model, said)
		}
		if one, two := rows(a, model+"_g1"), rows(a, model+"_g2"); len(one) == 0 || !maps.Equal(one, two) {
			t.Errorf("%s: generation 1 has %v, generation 2 has %v", model, one, two)
		}
	}
	shownErased("after rebuilding")
	nothing("after erasing")

	// They may act again, under a new key.
	again := a.Must(servertest.Customer("cust1"), "POST /v1/orders", servertest.Basket("r1"))
	if again.Str("deliverTo.address") != "12 Market Road" {
		t.Errorf("%s", again.Body)
	}
	if x := a.Must(servertest.Rider("rider1"), "PUT /v1/riders/rider1", map[string]any{"name": "Zed"}); x.Str("name") != "Zed" {
		t.Errorf("%s", x.Body)
	}

	// Rotation: a new master key, which a restarted server needs no old one beside.
	newer := hex.EncodeToString(bytes.Repeat([]byte{0xb8}, 32))
	rewrap := []string{"keys", "rewrap", "--master-key", newer + "," + hex.EncodeToString(master)}
	for _, typed := range []string{"", "yes\n", "0123456789abcdef\n"} { // no server has it so far, so it may be mistyped
		if said := a.ToolRefused(typed, rewrap...); !strings.Contains(said, "nothing was changed") || !strings.Contains(said, "Every server must have it in TOMATO_MASTER_KEY first") {
			t.Errorf("%q: %s", typed, said)
		}
	}
	_, said, _ := strings.Cut(a.ToolRefused("", rewrap...), "has the fingerprint ")
	fingerprint, _, _ := strings.Cut(said, ".")
	if said := a.ToolWith(fingerprint+"\n", rewrap...); !strings.Contains(said, "are wrapped under the master key "+fingerprint) || strings.Contains(said, "rewrapped 0") {
		t.Error(said)
	}
	if said := a.Tool(rewrap...); !strings.Contains(said, "rewrapped 0") { // now it is known
		t.Error(said)
	}
	a.Stop()
	a.Config.MasterKeys = []string{newer}
	a.Start()
	for path, want := range map[string]string{"/v1/orders/" + mine: `"deliverTo":{"erased":true}`, "/v1/orders/" + theirs: otherAddress,
		"/v1/orders/" + again.Str("orderId"): "12 Market Road", "/v1/riders/rider1": `"name":"Zed"`, "/v1/riders/rider2": `"name":"Bo"`} {
		if x := a.Must(servertest.Ops, "GET "+path, nil); !strings.Contains(string(x.Body), want) {
			t.Errorf("with another master key: %s, want %s", x.Body, want)
		}
	}
}

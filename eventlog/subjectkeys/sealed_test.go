package subjectkeys

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tomato/domain"
)

// update creates golden files that are missing. It never overwrites one, because what is
// sealed or on the topic must stay readable.
var update = flag.Bool("update", false, "create missing golden files; existing ones are never touched")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	want, err := os.ReadFile(path)
	if os.IsNotExist(err) && *update {
		want, err = []byte(got+"\n"), os.WriteFile(path, []byte(got+"\n"), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got+"\n" {
		t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
	}
}

func testCipher(t testing.TB, subject Subject) *Cipher {
	t.Helper()
	c, err := NewCipher(subject, 0x0102030405060708, bytes.Repeat([]byte{7}, keyBytes))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const address = `{"location":{"type":"Point","coordinates":[77.6101,12.9352]},"address":"4 Church Street","instructions":"ring twice"}`

// TestKnownAnswers pins the format of sealed texts, of wrapped keys and of fingerprints.
// Whatever was sealed must stay readable for ever.
func TestKnownAnswers(t *testing.T) {
	t.Parallel()
	order, una := testCipher(t, Customer("cust-9")), testCipher(t, Rider("rider-5"))
	golden(t, "deliver-to.txt", string(order.Seal(FieldDeliverTo, []byte(address))))
	golden(t, "name.txt", string(una.Seal(FieldName, []byte("Una Rao"))))
	for name, c := range map[string]struct {
		cipher       *Cipher
		field, plain string
	}{"deliver-to.txt": {order, FieldDeliverTo, address}, "name.txt": {una, FieldName, "Una Rao"}} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		sealed := domain.Sealed(strings.TrimSpace(string(text)))
		parts, err := parse(sealed)
		if err != nil || !sealed.Valid() || parts.key != 0x0102030405060708 {
			t.Fatalf("%s: %v, %s", name, err, parts.key)
		}
		if plain, err := c.cipher.open(c.field, parts); err != nil || string(plain) != c.plain {
			t.Errorf("%s opens as %q, %v", name, plain, err)
		}
	}

	m, err := NewMaster(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	derived, err := DeriveMaster(strings.Repeat("k", 32))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "fingerprints.txt", m.Fingerprint()+" "+derived.Fingerprint())
	name := recordKey(Customer("cust-9"), 0x0102030405060708)
	at := time.Date(2026, 11, 29, 12, 0, 0, 123456789, time.UTC)
	record, err := os.ReadFile("testdata/key.json")
	if os.IsNotExist(err) && *update { // the nonce is random, so the file is made once
		w := m.wrap(name, bytes.Repeat([]byte{7}, keyBytes))
		value, err := encodeKey(m, &w, at)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "key.json", string(value))
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	v, w, err := decodeKey(record)
	if err != nil || v.Master != m.Fingerprint() || !v.CreatedAt.Equal(domain.Time(at)) {
		t.Fatalf("%+v, %v", v, err)
	}
	if key, err := m.unwrap(name, &w); err != nil || !bytes.Equal(key, bytes.Repeat([]byte{7}, keyBytes)) {
		t.Errorf("unwrapped %x, %v", key, err)
	}
	if again, err := encodeKey(m, &w, at); err != nil || string(again)+"\n" != string(record) {
		t.Errorf("%s, want %s", again, record)
	}
	if _, err := m.unwrap(recordKey(Customer("cust-8"), 0x0102030405060708), &w); err == nil {
		t.Error("a wrapped key opens for another record")
	}
	done := Erasure{ID: "019ad0c1-0000-7000-8000-000000000001", Subject: Customer("cust-9"), At: domain.Time(at), CompletedAt: domain.Time(at), By: "ops:ops1", Reason: "asked by letter", Keys: 1}
	begun := done // erasure.json is how earlier builds wrote it
	begun.CompletedAt, begun.ids = time.Time{}, []KeyID{0x0102030405060708}
	completed := begun
	completed.CompletedAt = domain.Time(at.Add(time.Second))
	for file, e := range map[string]Erasure{"erasure.json": done, "erasure-begun.json": begun, "erasure-completed.json": completed} {
		key, value, err := e.encode()
		if err != nil {
			t.Fatal(err)
		}
		golden(t, file, key+"\n"+string(value))
		if back, err := decodeErasure(key, value); err != nil || !reflect.DeepEqual(back, e) {
			t.Errorf("%+v, %v", back, err)
		}
	}
}

// TestSealing: a text opens for its own subject, field and key only, and equal texts are
// equal when they are sealed.
func TestSealing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		plain := rapid.SliceOfN(rapid.Byte(), 0, 2000).Draw(rt, "plain")
		c := testCipher(t, Customer("c1"))
		sealed := c.Seal(FieldDeliverTo, plain)
		if !sealed.Valid() || sealed != c.Seal(FieldDeliverTo, plain) || sealed == c.Seal(FieldName, plain) {
			rt.Fatalf("sealed %s", sealed)
		}
		if got, err := c.Open(FieldDeliverTo, sealed); err != nil || !bytes.Equal(got, plain) {
			rt.Fatalf("%q, %v", got, err)
		}
		other, err := NewCipher(Customer("c1"), c.id, bytes.Repeat([]byte{8}, keyBytes))
		if err != nil {
			rt.Fatal(err)
		}
		for _, x := range []struct {
			c     *Cipher
			field string
		}{{c, FieldName}, {testCipher(t, Customer("c2")), FieldDeliverTo}, {testCipher(t, Rider("c1")), FieldDeliverTo}, {other, FieldDeliverTo}} {
			if _, err := x.c.Open(x.field, sealed); !errors.Is(err, ErrUnreadable) {
				rt.Fatalf("%s opens with %+v: %v", sealed, x, err)
			}
		}
		i := rapid.IntRange(0, len(sealed)-1).Draw(rt, "i")
		damaged := domain.Sealed(string(sealed[:i]) + string(rapid.ByteRange(' ', '~').Draw(rt, "b")) + string(sealed[i+1:]))
		if got, err := c.Open(FieldDeliverTo, damaged); damaged != sealed && err == nil {
			rt.Fatalf("damaged at %d: %q", i, got)
		}
	})
}

func TestNotSealed(t *testing.T) {
	t.Parallel()
	for _, s := range []domain.Sealed{"", "Una", "s1.", "s1.AAAA", "s2." + domain.Sealed(strings.Repeat("A", 48)), domain.Sealed("s1." + strings.Repeat("A", 48)), domain.Sealed("s1." + strings.Repeat("=", 48)),
		domain.Sealed("s1." + strings.Repeat("A", 47)), domain.Sealed("s1. " + strings.Repeat("B", 48))} {
		if _, err := parse(s); !errors.Is(err, ErrUnreadable) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestSubjects(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"customer/c-1_Z", "rider/r", "webhooks/2026-11"} {
		if x, err := ParseSubject(s); err != nil || x.String() != s {
			t.Errorf("%s: %v, %v", s, x, err)
		}
	}
	for _, s := range []string{"", "customer", "customer/", "customer/a/b", "customer/" + strings.Repeat("x", 65), "restaurant/r", "webhooks/2026-13", "webhooks/x", "rider/ä"} {
		if x, err := ParseSubject(s); err == nil {
			t.Errorf("%q: %v", s, x)
		}
	}
	if s := WebhooksOf(time.Date(2026, 12, 1, 1, 0, 0, 0, time.FixedZone("IST", 5*3600+1800))); s.String() != "webhooks/2026-11" {
		t.Error(s)
	}
	for _, s := range []string{"customer/c1/0000000000000000", "customer/c1/1", "customer/c1/000000000000000G", "customer/c1/000000000000000A", "erased/customer/c1/0000000000000001", "mark", ""} {
		if _, _, ok := parseRecordKey(s); ok {
			t.Errorf("%q is the record of a key", s)
		}
	}
}

// TestRing compares the ring with a plain list.
func TestRing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		r := newRing()
		var want []KeyID // of one subject, in the order of the log
		one, two := Customer("1").hash(), Customer("2").hash()
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			id := KeyID(rapid.Uint64Range(1, 6).Draw(rt, "id"))
			if rapid.Bool().Draw(rt, "put") {
				known := false
				for _, w := range want {
					known = known || w == id
				}
				if !r.put(heldKey{id: id, subject: one, master: uint8(id)}) {
					rt.Fatal("refused")
				}
				if r.put(heldKey{id: id, subject: two}) {
					rt.Fatal("one id for two subjects")
				}
				if !known {
					want = append(want, id)
				}
				continue
			}
			r.remove(two, id)
			r.remove(one, id)
			kept := want[:0:0]
			for _, w := range want {
				if w != id {
					kept = append(kept, w)
				}
			}
			want = kept
		}
		got := r.of(one)
		if len(got) != len(want) || r.len() != len(want) {
			rt.Fatalf("%v, want %v", got, want)
		}
		for i := range got {
			if k, ok := r.get(got[i]); got[i] != want[i] || !ok || k.id != got[i] || k.master != uint8(got[i]) {
				rt.Fatalf("%v, want %v", got, want)
			}
		}
		if len(want) == 0 && r.firstOf(one) != 0 || len(want) > 0 && r.firstOf(one) != want[0] {
			rt.Fatalf("first is %d of %v", r.firstOf(one), want)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	c := testCipher(b, Customer("cust-9"))
	b.ReportAllocs()
	for b.Loop() {
		c.Seal(FieldDeliverTo, []byte(address))
	}
}

func BenchmarkOpen(b *testing.B) {
	c := testCipher(b, Customer("cust-9"))
	sealed := c.Seal(FieldDeliverTo, []byte(address))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Open(FieldDeliverTo, sealed); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNewCipher(b *testing.B) {
	for b.Loop() {
		testCipher(b, Customer("cust-9"))
	}
}

// BenchmarkMillionKeys measures what a keyring holds of a million keys.
func BenchmarkMillionKeys(b *testing.B) {
	for b.Loop() {
		before, after := RingMemory(1_000_000)
		b.ReportMetric(float64(after-before)/1e6, "bytes/key")
	}
}

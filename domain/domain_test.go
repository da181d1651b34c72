package domain_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/rider"
)

func TestPoint(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   string
		want domain.Point
		out  string // "" where it is refused
	}{
		{`{"type":"Point","coordinates":[77.5946,12.9716]}`, domain.Point{Lng: 77.5946, Lat: 12.9716}, `{"type":"Point","coordinates":[77.5946,12.9716]}`},
		{`{"type":"Point","coordinates":[-180,90,920.5]}`, domain.Point{Lng: -180, Lat: 90}, `{"type":"Point","coordinates":[-180,90]}`},
		{`{"type":"Point","coordinates":[1e-7,0]}`, domain.Point{Lng: 1e-7}, `{"type":"Point","coordinates":[1e-07,0]}`},
		{`{"type":"Point","coordinates":[180.01,0]}`, domain.Point{}, ""},
		{`{"type":"Point","coordinates":[12.9716,-90.1]}`, domain.Point{}, ""},
		{`{"type":"Point","coordinates":[1]}`, domain.Point{}, ""},
		{`{"type":"Point","coordinates":[1,2,3,4]}`, domain.Point{}, ""},
		{`{"type":"Point"}`, domain.Point{}, ""},
		{`{"type":"LineString","coordinates":[1,2]}`, domain.Point{}, ""},
		{`{"coordinates":[1,2]}`, domain.Point{}, ""},
		{`[1,2]`, domain.Point{}, ""},
	} {
		var p domain.Point
		err := json.Unmarshal([]byte(c.in), &p)
		if (err == nil) != (c.out != "") {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if err != nil {
			continue
		}
		if out, err := json.Marshal(p); p != c.want || err != nil || string(out) != c.out {
			t.Errorf("%s: got %+v, written %s (%v)", c.in, p, out, err)
		}
	}
	for _, p := range []domain.Point{{Lng: math.NaN()}, {Lat: math.NaN()}, {Lng: math.Inf(1)}, {Lat: -91}} {
		if p.Valid() {
			t.Errorf("%+v is valid", p)
		}
	}
}

func TestValidID(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]bool{
		"a": true, "A-Za_z0-9": true, strings.Repeat("x", 64): true,
		"": false, strings.Repeat("x", 65): false, "a b": false, "a/b": false, "é": false, "a\n": false, "a.b": false, "order:1": false,
	} {
		if domain.ValidID(id) != want {
			t.Errorf("ValidID(%q) = %v", id, !want)
		}
	}
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("while deciding: %w", domain.Refuse(rider.CodeBusy, "has %s", "o1"))
	if domain.RefusedWith(err) != rider.CodeBusy || !strings.HasSuffix(err.Error(), "rider_busy: has o1") {
		t.Error(err)
	}
	if domain.RefusedWith(nil) != "" || domain.RefusedWith(fmt.Errorf("broken")) != "" {
		t.Error("what is no refusal has a code")
	}
}

func TestTime(t *testing.T) {
	t.Parallel()
	in := time.Date(2026, 1, 2, 3, 4, 5, 6_007_008, time.FixedZone("IST", 19800))
	if got, want := domain.Time(in), time.Date(2026, 1, 1, 21, 34, 5, 6_000_000, time.UTC); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestTheFormOfSealedTexts: a sealed text is s1. and base64url, and has a nonce and a tag.
func TestTheFormOfSealedTexts(t *testing.T) {
	t.Parallel()
	sealed := "s1." + strings.Repeat("A", 48)
	for c := range 256 {
		text := sealed[:20] + string([]byte{byte(c)}) + sealed[20:]
		_, err := base64.RawURLEncoding.DecodeString(strings.Repeat(string([]byte{byte(c)}), 4))
		if want := err == nil && c != '\n' && c != '\r'; domain.Sealed(text).Valid() != want { // the decoder ignores line ends
			t.Errorf("%q is valid: %v", text, !want)
		}
	}
	for _, text := range []string{"", "s1.", sealed[1:], "s2" + sealed[2:], sealed[:40], "s1." + strings.Repeat("A", 16<<10)} {
		if domain.Sealed(text).Valid() {
			t.Errorf("%.60q is valid", text)
		}
	}
}

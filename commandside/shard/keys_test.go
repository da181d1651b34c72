package shard

import (
	"testing"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog"
)

// The header idempotency is in records that are kept for ever, so its text never changes.
func TestTheHeaderOfAnIdempotencyKeyIsForEver(t *testing.T) {
	t.Parallel()
	r := Request{Topic: eventlog.Orders, ID: "019b7c1e-8e3c-7b1a-9d55-0a1b2c3d4e5f", Actor: domain.Actor{Role: domain.Rider, Sub: "rider-5"},
		Command: order.Deliver{}, IdempotencyKey: "k1", BodyHash: "{}"}
	const text = "9GOuol0XhGtV7BxtRBNvo1WzZ4o.200"
	use := keyUse{body: bodyOf(&r), status: 200}
	if got := use.text(scopeOf(&r)); got != text {
		t.Errorf("%q, want %q", got, text)
	}
	scope, got, ok := parseKeyUse(text)
	if !ok || scope != scopeOf(&r) || got != use {
		t.Errorf("read as %x, %+v, %v", scope, got, ok)
	}
	if scope, got, ok := parseKeyUse(text + ".1700000000000"); !ok || scope != scopeOf(&r) || got != use { // as in a snapshot
		t.Errorf("with a time, read as %x, %+v, %v", scope, got, ok)
	}
	for _, bad := range []string{"", ".", text[1:], text[:len(text)-4], "!" + text[1:], "a." + text} {
		if _, _, ok := parseKeyUse(bad); ok {
			t.Errorf("%q is read", bad)
		}
	}
}

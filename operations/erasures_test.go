package operations_test

import (
	"encoding/json"
	"testing"
	"time"

	"tomato/eventlog/subjectkeys"
	"tomato/operations"
)

// TestErasuresShowTheirState: an erasure that was begun is in the list before it is
// finished. completedAt is there when it is.
func TestErasuresShowTheirState(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	e := subjectkeys.Erasure{ID: "e1", Subject: subjectkeys.Rider("una"), At: at, By: "ops:o", Reason: "r", Keys: 1}
	done := e
	done.CompletedAt = at.Add(time.Second)
	for want, e := range map[string]subjectkeys.Erasure{
		`{"erasureId":"e1","riderId":"una","state":"begun","keys":1,"at":"2026-11-29T12:00:00Z","by":"ops:o","reason":"r"}`:                                          e,
		`{"erasureId":"e1","riderId":"una","state":"completed","keys":1,"at":"2026-11-29T12:00:00Z","completedAt":"2026-11-29T12:00:01Z","by":"ops:o","reason":"r"}`: done,
	} {
		if b, err := json.Marshal(operations.NewErasure(e)); err != nil || string(b) != want {
			t.Errorf("%s, %v, want %s", b, err, want)
		}
	}
}

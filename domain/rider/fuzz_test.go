package rider

import (
	"testing"
	"time"
)

// FuzzPosition: a record of rider-locations is a position that a reader can use, or
// an error.
func FuzzPosition(f *testing.F) {
	f.Add(PositionType, "x", []byte(`{"riderId":"x","location":{"type":"Point","coordinates":[77.6,12.9]},"recordedAt":"2026-01-02T03:04:05Z"}`))
	f.Add(PositionType, "", []byte("{}"))
	f.Add("", "x", []byte("null"))
	f.Add(PositionType, "\x00", []byte(`{"riderId":"\u0000","location":{"type":"Point","coordinates":[1e309,12.9]}}`))
	now := time.Unix(1_767_323_045, 0)
	f.Fuzz(func(t *testing.T, eventType, key string, data []byte) {
		p, err := ReadPosition(eventType, key, data, now)
		if err == nil && (p.RiderID != key || key == "" || p.RecordedAt.IsZero() || !p.Location.Valid()) {
			t.Errorf("%+v", p)
		}
	})
}

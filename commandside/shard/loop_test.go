package shard

import (
	"testing"

	"tomato/eventlog"
)

// its own.
func TestAForwardedPlaceKeepsItsID(t *testing.T) {
	t.Parallel()
	s := &Shards{Config: Config{Partitions: 12}}
	for _, key := range []string{"", "k"} {
		for range 50 {
			r := Request{Topic: eventlog.Orders, Command: Place{}, IdempotencyKey: key}
			p := s.partitionOf(&r)
			b, err := encodeRequest(r)
			if err != nil {
				t.Fatal(err)
			}
			forwarded, err := decodeRequest(b)
			if err != nil {
				t.Fatal(err)
			}
			if at := s.partitionOf(&forwarded); at != p || forwarded.ID != r.ID {
				t.Fatalf("key %q: order %s of shard %d became %s of shard %d", key, r.ID, p, forwarded.ID, at)
			}
		}
	}
}

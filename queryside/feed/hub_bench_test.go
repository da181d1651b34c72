package feed

import (
	"fmt"
	"testing"
	"time"

	"tomato/domain"
)

// What one published message costs the hub: the cursor, and a queue per receiver.
func BenchmarkPublish(b *testing.B) {
	for _, receivers := range []int{0, 1, 4, 1000} {
		b.Run(fmt.Sprintf("receivers=%d", receivers), func(b *testing.B) {
			h := openHub(b, HubConfig{QueueBytes: 1 << 30}, 12)
			var subs []*subscriber
			for range receivers {
				s, _, err := h.open(domain.Actor{Sub: "u1", Role: domain.Customer}, nil, "")
				if err != nil {
					b.Fatal(err)
				}
				subs = append(subs, s)
			}
			var items []item
			offset := int64(0)
			for b.Loop() {
				h.Publish(orders0, offset, time.Time{}, msg("user:u1", "restaurant:r1", "order:o1", "user:k1"))
				offset++
				for _, s := range subs {
					items, _ = s.take(items, maxTakeBytes)
				}
			}
		})
	}
}

package server_test

import (
	"strings"
	"testing"

	"tomato/cmd/tomato/server"
)

// An instance with its own embedded broker may listen on every address, because there
// are no other instances. Its URL is that of this machine.
func TestAWildcardWithoutOtherInstances(t *testing.T) {
	t.Parallel()
	c := startContract(t, func(c *server.Config) { c.Brokers, c.HTTPAddr = nil, "0.0.0.0:0" })
	if !strings.HasPrefix(c.URL, "http://127.0.0.1:") {
		t.Errorf("it is at %s", c.URL)
	}
	items := c.do(t, anOps, "GET", "/v1/ops/shards", nil).items()
	if len(items) == 0 {
		t.Fatal("no shards")
	}
	for _, s := range items {
		if s, _ := s.(map[string]any); s["url"] != c.URL {
			t.Errorf("a shard is at %v, want %s", s["url"], c.URL)
		}
	}
}

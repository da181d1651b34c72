package main

import (
	"errors"
	"net"
	"strings"
	"testing"
)

// Other instances must reach the advertised address: one that they cannot reach is
// refused at start, with the setting to change.
func TestAddressesThatOthersCannotReach(t *testing.T) {
	t.Parallel()
	for _, r := range []struct {
		brokers, listen, advertised string
		fault                       string // what the error begins with; "" for none
	}{
		{"", "127.0.0.1:8080", "", ""},
		{"", "0.0.0.0:8080", "", ""},
		{"", ":8080", "", ""},
		{"k:9092", "127.0.0.1:8080", "", ""},
		{"k:9092", "10.0.0.7:8080", "", ""},
		{"k:9092", "0.0.0.0:8080", "http://10.0.0.7:8080", ""},
		{"k:9092", "0.0.0.0:8080", "https://tomato-1.example/base/", ""},
		{"k:9092", ":8080", "http://[fd00::7]:8080/", ""},
		{"k:9092", "0.0.0.0:8080", "", "TOMATO_HTTP_ADDR"},
		{"k:9092", "[::]:8080", "", "TOMATO_HTTP_ADDR"},
		{"k:9092", "[::ffff:0.0.0.0]:8080", "", "TOMATO_HTTP_ADDR"},
		{"k:9092", ":8080", "", "TOMATO_HTTP_ADDR"},
		{"", "8080", "", "TOMATO_HTTP_ADDR"},
		{"k:9092", "0.0.0.0:8080", "http://0.0.0.0:8080", "TOMATO_ADVERTISED_URL"},
		{"k:9092", "0.0.0.0:8080", "http://[::]:8080", "TOMATO_ADVERTISED_URL"},
		{"k:9092", "0.0.0.0:8080", "http://:8080", "TOMATO_ADVERTISED_URL"},
		{"k:9092", "0.0.0.0:8080", "http://0:8080", "TOMATO_ADVERTISED_URL"},
		{"k:9092", "0.0.0.0:8080", "10.0.0.7:8080", "TOMATO_ADVERTISED_URL"},
		{"k:9092", "0.0.0.0:8080", "host", "TOMATO_ADVERTISED_URL"},
		{"k:9092", "0.0.0.0:8080", "ftp://host", "TOMATO_ADVERTISED_URL"},
		{"k:9092", "0.0.0.0:8080", "http:host", "TOMATO_ADVERTISED_URL"},
		{"k:9092", "0.0.0.0:8080", "http://172.18.0.5 172.19.0.2:8080", "TOMATO_ADVERTISED_URL"},
		{"k:9092", "0.0.0.0:8080", "http://host:65536", "TOMATO_ADVERTISED_URL"},
		{"", "127.0.0.1:8080", "http://u:hunter2@host", "TOMATO_ADVERTISED_URL"},
		{"", "127.0.0.1:8080", "http://host?", "TOMATO_ADVERTISED_URL"},
		{"", "127.0.0.1:8080", "http://host#", "TOMATO_ADVERTISED_URL"},
	} {
		c := serveCmd{HTTPAddr: r.listen, Advertised: r.advertised}
		if r.brokers != "" {
			c.Brokers = []string{r.brokers}
		}
		err := c.checkAddresses()
		var u usageError
		switch {
		case r.fault == "" && err != nil:
			t.Errorf("%+v: %v", r, err)
		case r.fault != "" && (!errors.As(err, &u) || !strings.HasPrefix(err.Error(), r.fault) || !strings.Contains(err.Error(), "TOMATO_ADVERTISED_URL") && r.listen != "8080"):
			t.Errorf("%+v: %v, want a usage error that begins with %s", r, err, r.fault)
		case err != nil && strings.Contains(err.Error(), "hunter2"):
			t.Errorf("%+v: the error shows a password: %v", r, err)
		}
	}
	for advertised, want := range map[string]string{"": "http://127.0.0.1:8080", "http://host:1/": "http://host:1", "https://host/base": "https://host/base"} {
		if got := reachable(advertised, &net.TCPAddr{IP: net.IPv6unspecified, Port: 8080}); got != want {
			t.Errorf("advertised as %q it is reached at %s, want %s", advertised, got, want)
		}
	}
}

// An instance with a broker of its own may listen on every address: it is alone,
// and says where it is reached on this machine.
func TestAWildcardWithoutOtherInstances(t *testing.T) {
	t.Parallel()
	c := startContract(t, func(c *serveCmd) { c.Brokers, c.HTTPAddr = nil, "0.0.0.0:0" })
	if !strings.HasPrefix(c.url, "http://127.0.0.1:") {
		t.Errorf("it is at %s", c.url)
	}
	items := c.do(t, anOps, "GET", "/v1/ops/shards", nil).items()
	if len(items) == 0 {
		t.Fatal("no shards")
	}
	for _, s := range items {
		if s, _ := s.(map[string]any); s["url"] != c.url {
			t.Errorf("a shard is at %v, want %s", s["url"], c.url)
		}
	}
}

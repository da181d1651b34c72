package settings

import (
	"errors"
	"net"
	"strings"
	"testing"
)

// Other instances must be able to reach the advertised address. An address that they
// cannot reach is refused at the start, and the error names the setting to change.
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
		var brokers []string
		if r.brokers != "" {
			brokers = []string{r.brokers}
		}
		err := CheckAddresses(r.listen, r.advertised, brokers)
		var u UsageError
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
		if got := Reachable(advertised, &net.TCPAddr{IP: net.IPv6unspecified, Port: 8080}); got != want {
			t.Errorf("advertised as %q it is reached at %s, want %s", advertised, got, want)
		}
	}
}

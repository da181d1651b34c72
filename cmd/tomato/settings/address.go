package settings

import (
	"net"
	"net/url"
	"strconv"
	"strings"
)

// isWildcard reports whether a host stands for every address of the machine. Other
// machines cannot reach this instance by such a host.
func isWildcard(host string) bool {
	ip := net.ParseIP(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
	return host == "" || host == "0" || ip != nil && ip.IsUnspecified()
}

// CheckAddresses returns a UsageError if other instances could not reach this one. If
// brokers are configured, there may be other instances, and they forward commands to
// the advertised address of this one. With a wildcard address they would forward them
// to themselves.
func CheckAddresses(listen, advertised string, brokers []string) error {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return Usage("TOMATO_HTTP_ADDR must be HOST:PORT, such as 127.0.0.1:8080")
	}
	if advertised == "" {
		if len(brokers) > 0 && isWildcard(host) {
			return Usage("TOMATO_HTTP_ADDR listens on every address of this machine, and KAFKA_BROKERS is set, so other instances may have to reach this one: set TOMATO_ADVERTISED_URL to its own address, such as http://10.0.0.7:8080")
		}
		return nil
	}
	u, err := url.Parse(advertised)
	var fault string
	switch {
	case err != nil || u.Opaque != "":
		fault = "it is not a URL"
	case u.Scheme != "http" && u.Scheme != "https":
		fault = "it does not begin with http:// or https://"
	case u.User != nil:
		fault = "it must not have a user name or a password"
	case u.Hostname() == "":
		fault = "it has no host"
	case isWildcard(u.Hostname()):
		fault = "its host means every address of a machine, and nobody can reach this instance by it"
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(advertised, "#"):
		fault = "it must not have a query or a fragment"
	case u.Port() != "" && !validPort(u.Port()):
		fault = "its port is not 1 to 65535"
	default:
		return nil
	}
	return Usage("TOMATO_ADVERTISED_URL is where other instances reach this one, such as http://10.0.0.7:8080: %s", fault)
}

func validPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// Reachable returns the URL of this instance. It is the advertised URL if there is one,
// else the address on which the instance listens. If it listens on a wildcard address,
// the URL has the loopback address, which only processes on this machine can reach.
// This is enough, because CheckAddresses refuses a wildcard if other machines need the
// URL.
func Reachable(advertised string, listening net.Addr) string {
	if advertised != "" {
		return strings.TrimSuffix(advertised, "/")
	}
	host, port, err := net.SplitHostPort(listening.String())
	if err != nil {
		return "http://" + listening.String()
	}
	if isWildcard(host) {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

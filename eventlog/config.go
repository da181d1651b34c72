package eventlog

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// Config says how to reach the brokers.
type Config struct {
	Brokers       []string // host:port
	TLS           bool
	SASLMechanism string // "", PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
	SASLUsername  string
	SASLPassword  string
	ClientID      string // shown in the brokers' logs
	// Dial connects to a broker; nil: over TCP, with TLS if set. With it TLS is
	// Dial's own matter. For tunnels, and for tests that cut the network.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Options returns what every client of these brokers needs; a caller adds its own.
func (c Config) Options(more ...kgo.Opt) ([]kgo.Opt, error) {
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		// Metadata is asked for when something moved; the default of 5 s between
		// two refreshes would make every take-over and leader change that long.
		kgo.MetadataMinAge(100 * time.Millisecond),
		// A broker that stands still (a frozen machine, a stalled disk) closes no
		// connection. With the default of 10 s on top of each request's own limit,
		// clients stayed with it long after its partitions had another leader.
		kgo.RequestTimeoutOverhead(3 * time.Second),
		// The end of a transaction is a record with an offset of its own. Anybody may
		// have begun one on any topic; a reader that is not given its end waits for
		// that offset for ever. It has no headers, so it is no event.
		kgo.KeepControlRecords(),
		kgo.RetryBackoffFn(func(n int) time.Duration { return min(time.Duration(n)*50*time.Millisecond, time.Second) }),
	}
	if c.ClientID != "" {
		opts = append(opts, kgo.ClientID(c.ClientID))
	}
	switch {
	case c.Dial != nil:
		opts = append(opts, kgo.Dialer(c.Dial))
	case c.TLS:
		opts = append(opts, kgo.DialTLSConfig(&tls.Config{MinVersion: tls.VersionTLS12}))
	}
	switch c.SASLMechanism {
	case "":
	case "PLAIN":
		opts = append(opts, kgo.SASL(plain.Auth{User: c.SASLUsername, Pass: c.SASLPassword}.AsMechanism()))
	case "SCRAM-SHA-256":
		opts = append(opts, kgo.SASL(scram.Auth{User: c.SASLUsername, Pass: c.SASLPassword}.AsSha256Mechanism()))
	case "SCRAM-SHA-512":
		opts = append(opts, kgo.SASL(scram.Auth{User: c.SASLUsername, Pass: c.SASLPassword}.AsSha512Mechanism()))
	default:
		return nil, fmt.Errorf("KAFKA_SASL_MECHANISM %q: use PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", c.SASLMechanism)
	}
	return append(opts, more...), nil
}

// NewClient returns a client of these brokers.
func (c Config) NewClient(more ...kgo.Opt) (*kgo.Client, error) {
	opts, err := c.Options(more...)
	if err != nil {
		return nil, err
	}
	return kgo.NewClient(opts...)
}

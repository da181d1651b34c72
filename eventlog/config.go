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
	// Dial connects to a broker. If it is nil, connections use TCP, and TLS if TLS is
	// set. If it is set, TLS has no effect and Dial must do that itself. It is for
	// tunnels, and for tests that cut the network.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Options returns the options that every client of these brokers needs, and then more.
// It fails if SASLMechanism is unknown.
func (c Config) Options(more ...kgo.Opt) ([]kgo.Opt, error) {
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		// A client asks for the metadata when a partition has another leader. With the
		// default of 5 s between two requests, every take-over and change of a leader
		// would take that long.
		kgo.MetadataMinAge(100 * time.Millisecond),
		// A broker that hangs (a frozen machine, a stalled disk) does not close its
		// connections. With the default of 10 s on top of each request's own limit,
		// clients waited for it long after its partitions had another leader.
		kgo.RequestTimeoutOverhead(3 * time.Second),
		// The end of a transaction is a control record, which has an offset of its own.
		// Any program may have written a transaction to any topic. A reader that does
		// not receive the control record waits for its offset for ever. It has no
		// headers, so readers do not take it for an event.
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

// NewClient returns a client of these brokers. It does not connect yet.
func (c Config) NewClient(more ...kgo.Opt) (*kgo.Client, error) {
	opts, err := c.Options(more...)
	if err != nil {
		return nil, err
	}
	return kgo.NewClient(opts...)
}

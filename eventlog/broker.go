package eventlog

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/twmb/franz-go/pkg/kfake"

	"tomato/eventlog/filelock"
)

// ErrInUse says that another process has the broker's directory open.
var ErrInUse = filelock.ErrInUse

// Broker is the embedded broker: one node that speaks Kafka's protocol on a
// TCP port and keeps its topics, groups and producers in a directory. Each
// acknowledged batch has been written to the operating system, so that it
// outlives a kill of the process; a power cut may take what the page cache
// held, as with Apache Kafka's own defaults on one broker. A batch that was under
// way at a kill may be in the log twice afterwards; the reader rule rejects the
// second copy. The broker is for trying out, development and tests: it has one
// copy of everything and one loop that serves all clients.
type Broker struct {
	cluster *kfake.Cluster
	addr    string
	lock    *os.File
	close   sync.Once
}

// StartBroker opens dir, created if need be, and listens on addr (host:port; a
// port of 0 takes a free one). The host is what clients are told to connect to,
// so it must be a name or address, not a wildcard. It fails with ErrInUse when
// a live process has dir open; a process that was killed no longer holds it.
func StartBroker(dir, addr string) (*Broker, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("broker address %q: want host:port: %w", addr, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return nil, fmt.Errorf("broker address %q: clients cannot connect to a wildcard; name the address they reach, such as 127.0.0.1", addr)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("broker directory: %w", err)
	}
	lock, err := filelock.Take(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("broker directory %s: %w", dir, err)
	}
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.ClusterID("tomato-embedded"),
		kfake.DataDir(filepath.Join(dir, "data")),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return net.Listen("tcp", addr) }),
	)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("embedded broker in %s on %s: %w", dir, addr, err)
	}
	return &Broker{cluster: cluster, addr: cluster.ListenAddrs()[0], lock: lock}, nil
}

// Addr returns the host:port that clients connect to.
func (b *Broker) Addr() string { return b.addr }

// Close stops serving, writes what is not yet on disk and releases the
// directory. Connected clients see their connections end. Later calls do
// nothing.
func (b *Broker) Close() {
	b.close.Do(func() {
		b.cluster.Close()
		b.lock.Close()
	})
}

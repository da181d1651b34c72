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

// ErrInUse means that another process has the broker's directory.
var ErrInUse = filelock.ErrInUse

// Broker is the embedded broker: one node that speaks Kafka's protocol on a TCP port
// and keeps its topics, groups and producers in a directory. It is for first steps,
// development and tests, because it has one copy of everything and one loop that
// serves all clients. Its methods are safe for concurrent use.
//
// The broker writes each batch to the operating system before it acknowledges it. So
// an acknowledged batch survives a kill of the process. A power cut may lose what
// was in the page cache, as with one broker of Apache Kafka and its default settings.
// A batch that was being written at a kill may be in the log twice afterwards. The
// reader rule rejects the second copy.
type Broker struct {
	cluster *kfake.Cluster
	addr    string
	lock    *os.File
	unmend  func()
	close   sync.Once
}

// StartBroker starts a broker on dir, which it creates if it does not exist, and
// listens on addr (host:port; with port 0 it takes a free one). Clients are told to
// connect to the host of addr, so it must be a name or an address and not a wildcard.
// It fails with ErrInUse if another process has dir. A process that was killed has it
// no longer.
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
	b := &Broker{cluster: cluster, addr: cluster.ListenAddrs()[0], lock: lock}
	if b.unmend, err = mendGroups(b.addr); err != nil {
		cluster.Close()
		lock.Close()
		return nil, fmt.Errorf("embedded broker in %s on %s: %w", dir, addr, err)
	}
	return b, nil
}

// Addr returns the host:port that clients connect to.
func (b *Broker) Addr() string { return b.addr }

// Close stops the broker, writes what is not on disk yet, and releases the directory.
// The connections of clients are closed. Later calls do nothing.
func (b *Broker) Close() {
	b.close.Do(func() {
		b.unmend()
		b.cluster.Close()
		b.lock.Close()
	})
}

package kafkaprocess

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"
)

// Cluster is a Kafka cluster of several nodes. Each node is a process of its own, which
// may be killed, paused or stopped, and started again. Its methods may be called
// concurrently.
type Cluster struct {
	dirs  []string
	nodes []node
	opts  Options

	mu        sync.Mutex
	processes []*Process // the last process of each node, which may have ended
}

// StartCluster runs n nodes in dir/1 to dir/n and returns when all of them answer.
// Their broker ids are 1 to n. Each node is a controller, too, so a cluster of three
// nodes works while one of them is unavailable. If there are at least three nodes,
// topics have three replicas, of which two must be in sync. With fewer nodes there are
// as many replicas as nodes, and one must be in sync. The same holds for the brokers'
// own topics. A cluster that was started in dir before starts again with its data and
// addresses.
//
// The options apply to each node. Options.Port is not used.
func StartCluster(ctx context.Context, dir string, n int, opts Options) (_ *Cluster, err error) {
	if n < 1 {
		return nil, fmt.Errorf("a cluster of %d nodes", n)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	c := &Cluster{opts: opts, processes: make([]*Process, n)}
	free, err := freePorts(2 * n) // all at once, so that they differ
	if err != nil {
		return nil, err
	}
	all := make([]ports, n)
	for i := range n {
		d := filepath.Join(dir, strconv.Itoa(i+1))
		if all[i], err = portsOf(d); err != nil {
			return nil, err
		}
		if all[i] == (ports{}) {
			all[i] = ports{client: free[2*i], controller: free[2*i+1]}
		}
		if all[i], err = keepPorts(d, all[i]); err != nil {
			return nil, err
		}
		c.dirs = append(c.dirs, d)
	}
	inSync := 1
	if n >= 3 {
		inSync = 2
	}
	for i := range n {
		c.nodes = append(c.nodes, node{id: i + 1, own: all[i], voters: voters(all), copies: min(n, 3), inSync: inSync})
	}
	// The nodes start at the same time, because none of them answers before a majority
	// of the controllers runs.
	errs := make([]error, n)
	var starts sync.WaitGroup
	for i := range n {
		starts.Go(func() { _, errs[i] = c.Start(ctx, int32(i+1)) })
	}
	starts.Wait()
	if err := errors.Join(errs...); err != nil {
		c.Kill()
		return nil, err
	}
	return c, nil
}

// Start runs a node that was killed or stopped again, and returns when it serves. For a
// node that was killed this takes a few seconds, because the controller lets it in only
// after it has given up the old process.
func (c *Cluster) Start(ctx context.Context, id int32) (*Process, error) {
	p, err := start(ctx, c.dirs[id-1], c.opts, c.nodes[id-1])
	if err != nil {
		return nil, fmt.Errorf("node %d: %w", id, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.processes[id-1] = p
	return p, nil
}

// Node returns the last process of the broker with this id.
func (c *Cluster) Node(id int32) *Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.processes[id-1]
}

// Addrs returns the addresses of all nodes, in the order of their ids.
func (c *Cluster) Addrs() []string {
	var addrs []string
	for _, n := range c.nodes {
		addrs = append(addrs, n.own.addr())
	}
	return addrs
}

// Kill ends all nodes (SIGKILL) and returns when they have ended.
func (c *Cluster) Kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.processes {
		if p != nil {
			p.Kill()
		}
	}
}

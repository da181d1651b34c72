package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/cmd/tomato/server"
	"tomato/cmd/tomato/settings"
	"tomato/domain/order"
	"tomato/eventlog"
)

type topicsCmd struct {
	Ensure   topicsEnsureCmd   `cmd:"" help:"Create the topics that are missing and verify the others."`
	Describe topicsDescribeCmd `cmd:"" help:"Show the topics and what is wrong with them."`
}

type topicsEnsureCmd struct{ settings.Tool }

func (c topicsEnsureCmd) Run(ctx context.Context) error {
	return withAdmin(&c.Tool, func(adm *kadm.Client) error {
		if err := eventlog.Ensure(ctx, adm, server.Layout(c.Kafka)); err != nil {
			return err
		}
		fmt.Println("all topics are there and as they must be")
		return nil
	})
}

type topicsDescribeCmd struct {
	settings.Tool
	JSON    bool `name:"json" help:"As JSON."`
	Records bool `help:"Read the topics of events once, and count records and bytes by type and bytes per order."`
}

func (c topicsDescribeCmd) Run(ctx context.Context) error {
	var topics describedTopics
	err := withAdmin(&c.Tool, func(adm *kadm.Client) error {
		rows, err := eventlog.Describe(ctx, adm, server.Layout(c.Kafka))
		if err != nil {
			return err
		}
		for _, r := range rows {
			topics = append(topics, describedTopic{TopicRow: r})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if c.Records {
		types, err := eventlog.CountAggregateTypes(ctx, c.Kafka.Config("tomato-tool"))
		if err != nil {
			return err
		}
		topics.addTypes(types)
	}
	if c.JSON {
		return json.NewEncoder(os.Stdout).Encode(topics)
	}
	return topics.write(os.Stdout)
}

// describedTopic is one topic, as topics describe shows it.
type describedTopic struct {
	eventlog.TopicRow
	// Types and BytesPerOrder are of the topics of events only, and if the records were
	// counted. BytesPerOrder is 0 if no order was placed.
	Types         []eventlog.TypeRow `json:"types,omitempty"`
	BytesPerOrder float64            `json:"bytesPerOrder,omitempty"`
}

type describedTopics []describedTopic

// addTypes enters what the records of each type take, and what each topic takes for
// every order that was placed.
func (topics describedTopics) addTypes(types []eventlog.TypeRow) {
	orders := placedOrders(types)
	for i := range topics {
		t := &topics[i]
		var size int64
		for _, row := range types {
			if row.Topic == t.Topic {
				t.Types = append(t.Types, row)
				size += row.Bytes
			}
		}
		if orders > 0 {
			t.BytesPerOrder = math.Round(float64(size)/float64(orders)*10) / 10
		}
	}
}

// placedOrders returns the number of orders that were placed.
func placedOrders(types []eventlog.TypeRow) (n int64) {
	for _, row := range types {
		if row.Topic == eventlog.Orders && row.Type == order.TypeOrderPlaced {
			n += row.Records
		}
	}
	return n
}

// write writes the topics as a table, and below it the types, if they were counted.
func (topics describedTopics) write(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "TOPIC\tPARTITIONS\tREPLICATION\tPOLICY\tRETENTION\tRECORDS\tBYTES\tPROBLEMS")
	var types []eventlog.TypeRow
	for _, r := range topics {
		keep := "for ever"
		if r.RetentionMS >= 0 {
			keep = (time.Duration(r.RetentionMS) * time.Millisecond).String()
		}
		if r.Missing {
			keep = "missing"
		}
		size := "-"
		if r.Bytes != nil {
			size = fmt.Sprint(*r.Bytes)
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%d\t%s\t%v\n", r.Topic, r.Partitions, r.Replication, r.CleanupPolicy, keep, r.Records, size, r.Problems)
		types = append(types, r.Types...)
	}
	if err := w.Flush(); err != nil || len(types) == 0 {
		return err
	}
	fmt.Fprintln(out)
	orders := placedOrders(types)
	perOrder := func(n int64) string {
		if orders == 0 {
			return "-"
		}
		return fmt.Sprintf("%.1f", float64(n)/float64(orders))
	}
	var records, size int64
	fmt.Fprintln(w, "TOPIC\tTYPE\tRECORDS\tBYTES\tBYTES/ORDER")
	for _, row := range types {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\n", row.Topic, row.Type, row.Records, row.Bytes, perOrder(row.Bytes))
		records, size = records+row.Records, size+row.Bytes
	}
	fmt.Fprintf(w, "all\t\t%d\t%d\t%s\n", records, size, perOrder(size))
	return w.Flush()
}

// withAdmin calls do with a client of the brokers. Where f names none, it fills in those
// of the running serve.
func withAdmin(f *settings.Tool, do func(*kadm.Client) error) error {
	if len(f.Brokers) == 0 {
		if err := f.Resolve(); err != nil {
			return err
		}
	}
	client, err := f.Kafka.Config("tomato-tool").NewClient()
	if err != nil {
		return settings.UsageError{Err: err}
	}
	defer client.Close()
	return do(kadm.NewClient(client))
}

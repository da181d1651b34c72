package shard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/eventlog"
)

// This file owns the record that names a shard's owner: its signature, and the search
// for its claim in the log.

// Owner says to which instance the commands of a shard go. It is a record on the topic
// shard-owners; its partition and its key are the number of the shard. Anybody who can
// reach the brokers can write to that topic. A record is therefore used only if an
// instance has signed it and the log has the claim that it names. It remains a hint:
// an instance that does not own the shard answers so, and the caller looks further.
type Owner struct {
	Shard     int32  `json:"shard"`
	Term      int64  `json:"term"`      // of its claim on orders
	Claim     int64  `json:"claim"`     // offset of that claim
	Owner     string `json:"owner"`     // name of the instance
	URL       string `json:"url"`       // where the instance takes forwarded commands
	Signature string `json:"signature"` // see signed
	// Epoch is the event-schema epoch of the instance's build; absent, and 0, for the
	// first. The signature does not cover it, so that builds from before epochs can check
	// the signature. It is believed because the claim in the log has the same.
	Epoch int `json:"epoch,omitempty"`
}

// signed returns the owner with its signature, in lower-case hex: the HMAC-SHA256,
// with the cluster key, of the following text. Every line ends with \n:
//
//	tomato owner v1
//	<shard>
//	<term>
//	<claim>
//	<owner>
//	<url>
//
// Numbers are decimal. The format must not change, because instances of two builds
// run side by side during a restart.
func (o Owner) signed(key string) Owner {
	o.Signature = sign(key, "tomato owner v1", strconv.Itoa(int(o.Shard)), strconv.FormatInt(o.Term, 10), strconv.FormatInt(o.Claim, 10), o.Owner, o.URL)
	return o
}

// Reasons for which a record about an owner is ignored.
const (
	ignoredMalformed = "malformed" // the record cannot be parsed, or a field is not valid
	ignoredSignature = "signature" // no instance has signed the record
	ignoredClaim     = "claim"     // the record is signed, but the log does not have the claim
)

// readOwner parses a record about the owner of this shard and checks its fields and its
// signature, which may be with any of the keys, but not its claim. reason is "" if the record is valid, and otherwise one
// of the reasons above.
func readOwner(b []byte, shard int32, keys ...string) (o Owner, reason string) {
	// Unknown fields are accepted, because a newer build may write more. The signature
	// covers the fields that are read here.
	if len(b) > maxOwnerRecord || json.Unmarshal(b, &o) != nil || o.Shard != shard || o.Term < 1 || o.Claim < 0 || o.Epoch < 0 || !visible(o.Owner, maxCause) || checkInstanceURL(o.URL) != nil {
		return Owner{}, ignoredMalformed
	}
	if !slices.ContainsFunc(keys, func(key string) bool { return same(o.Signature, o.signed(key).Signature) }) {
		return Owner{}, ignoredSignature
	}
	return o, ""
}

// maxOwnerRecord is the largest size of a record, in bytes of JSON.
const maxOwnerRecord = 4 << 10

// checkInstanceURL returns an error if the URL cannot be that of an instance.
func checkInstanceURL(address string) error {
	u, err := url.Parse(address)
	switch {
	case err != nil || !visible(address, 2<<10):
		return errors.New("it is not a URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return errors.New("it does not begin with http:// or https://")
	case u.Hostname() == "" || u.Opaque != "":
		return errors.New("it has no host")
	case u.User != nil:
		return errors.New("it has a user name or a password")
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(address, "#"):
		return errors.New("it has a query or a fragment")
	}
	return nil
}

// errNoClaim means that the log does not have the claim that an owner record names.
var errNoClaim = errors.New("the log does not have this claim")

// findClaim reads the record at the offset that an owner names as its claim. The error
// is errNoClaim if there is no record, or not that claim. Any other error means that
// the log cannot be read now.
func findClaim(ctx context.Context, cfg eventlog.Config, o Owner) error {
	client, err := cfg.NewClient()
	if err != nil {
		return err
	}
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, eventlog.Orders)
	client.Close()
	if err != nil {
		return err
	}
	tp := eventlog.TopicPartition{Topic: eventlog.Orders, Partition: o.Shard}
	end, ok := ends.Lookup(tp.Topic, tp.Partition) // only this partition matters: others may be without a leader
	switch {
	case !ok:
		return fmt.Errorf("%s/%d is not known to the brokers", tp.Topic, tp.Partition)
	case end.Err != nil:
		return end.Err
	case o.Claim >= end.Offset:
		return fmt.Errorf("%w: %s/%d ends at %d", errNoClaim, tp.Topic, tp.Partition, end.Offset)
	}
	found := false
	err = eventlog.Read(ctx, cfg, map[eventlog.TopicPartition]eventlog.Range{tp: {From: o.Claim, To: o.Claim + 1}}, func(e *eventlog.Event) error {
		var c claimData
		found = e.Offset == o.Claim && e.Type == eventlog.ShardClaimed && e.Term == o.Term && json.Unmarshal(e.Data, &c) == nil && c.Owner == o.Owner && max(1, c.Epoch) == o.epoch()
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("%w: another record is at %s/%d@%d", errNoClaim, tp.Topic, tp.Partition, o.Claim)
	}
	return err
}

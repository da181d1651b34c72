package shard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/eventlog"
)

// Owner is where the commands of a shard go. It is a record on topic
// shard-owners, in partition and under the key of its shard's number. Anybody
// who reaches the brokers can write there, so a record is believed only if an
// instance has signed it and the log bears it out. It stays a hint all the same:
// who is asked and does not own the shard says so.
type Owner struct {
	Shard     int32  `json:"shard"`
	Term      int64  `json:"term"`  // of its claim on orders
	Claim     int64  `json:"claim"` // offset of that claim on orders
	Owner     string `json:"owner"` // instance
	URL       string `json:"url"`
	Signature string `json:"signature"` // see signed
}

// signed returns the owner with its signature: the HMAC-SHA256, keyed with the
// cluster key, of this text in lower-case hex. Every line ends with \n:
//
//	tomato owner v1
//	<shard>
//	<term>
//	<claim>
//	<owner>
//	<url>
//
// Numbers are decimal. This is fixed: instances of two builds meet during a
// restart.
func (o Owner) signed(key string) Owner {
	o.Signature = sign(key, "tomato owner v1", strconv.Itoa(int(o.Shard)), strconv.FormatInt(o.Term, 10), strconv.FormatInt(o.Claim, 10), o.Owner, o.URL)
	return o
}

// Reasons for which a record about an owner is ignored.
const (
	ignoredMalformed = "malformed" // it cannot be read, or its fields are not valid
	ignoredSignature = "signature" // no instance has signed it
	ignoredClaim     = "claim"     // signed, but no such claim stands in the log
)

// readOwner reads what should be an owner of this shard. reason says why it is
// none; "" where it is one. Whether its claim is in the log is not looked at.
func readOwner(b []byte, shard int32, key string) (o Owner, reason string) {
	// A later build may say more than this one knows: the signature covers what is read.
	if len(b) > maxOwnerRecord || json.Unmarshal(b, &o) != nil || o.Shard != shard || o.Term < 1 || o.Claim < 0 || !visible(o.Owner, maxCause) || checkInstanceURL(o.URL) != nil {
		return Owner{}, ignoredMalformed
	}
	if !same(o.Signature, o.signed(key).Signature) {
		return Owner{}, ignoredSignature
	}
	return o, ""
}

// maxOwnerRecord bounds an owner as JSON, in bytes.
const maxOwnerRecord = 4 << 10

// checkInstanceURL says what is wrong with the address of an instance.
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

// errNoClaim says that the log does not have the claim that an owner names.
var errNoClaim = errors.New("no such claim stands in the log")

// findClaim looks up the claim that an owner names: one record of the log. The
// error is errNoClaim where another record stands there, or none, else that the
// log cannot be read now.
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
	end, ok := ends.Lookup(tp.Topic, tp.Partition) // another partition without a leader is no reason to fail
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
		found = e.Offset == o.Claim && e.Type == eventlog.ShardClaimed && e.Term == o.Term && json.Unmarshal(e.Data, &c) == nil && c.Owner == o.Owner
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("%w: another record stands at %s/%d@%d", errNoClaim, tp.Topic, tp.Partition, o.Claim)
	}
	return err
}

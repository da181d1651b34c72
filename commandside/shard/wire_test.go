package shard

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// stays are the commands that are never forwarded, because only the shard itself
// issues them.
var stays = map[string]bool{"expire": true, "cancel-unaccepted": true, "end-wave": true}

// Every command that the domain declares can be forwarded, and decoding gives the same
// command.
func TestEveryCommandTravels(t *testing.T) {
	t.Parallel()
	declared := map[string]bool{}
	for _, dir := range []string{"order", "payment", "rider", "restaurant"} {
		files, err := filepath.Glob("../../domain/" + dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				f, ok := n.(*ast.FuncDecl)
				if !ok || f.Name.Name != "CommandName" {
					return true
				}
				name, err := strconv.Unquote(f.Body.List[0].(*ast.ReturnStmt).Results[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				declared[name] = true
				return false
			})
		}
	}
	if len(declared) < 25 {
		t.Fatalf("found only %d commands", len(declared))
	}
	for name := range declared {
		if commands[name].decode == nil && !stays[name] {
			t.Errorf("%s cannot be forwarded: it has no line in commands", name)
		}
	}
	for name, rule := range commands {
		c, err := rule.decode([]byte("{}"))
		if err != nil || c.CommandName() != name {
			t.Errorf("%s is decoded as %T: %v", name, c, err)
		}
	}
}

func TestARequestSurvivesTheWay(t *testing.T) {
	t.Parallel()
	in := Request{Topic: eventlog.Orders, ID: anOrder, Actor: domain.SystemActor,
		Command:        order.Assign{RiderID: "x", RiderName: subjectkeystest.Name("x", "Una"), ClaimID: 3, Round: 1, Wave: 2},
		IdempotencyKey: "k", BodyHash: "b", IfMatch: 4, OrMatch: []int64{7, 9}, CausationID: "c", CorrelationID: "d",
		Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		After:       eventlog.Token{{Topic: eventlog.Restaurants, Partition: 2}: 7}}
	b, err := encodeRequest(in)
	if err != nil {
		t.Fatal(err)
	}
	out, err := decodeRequest(b)
	if err != nil || !reflect.DeepEqual(in, out) {
		t.Fatalf("%+v became %+v: %v", in, out, err)
	}
	answer, err := encodeAnswer(Result{Status: 200, Event: order.OrderPickedUp{OrderID: "o"}, Order: &order.State{ID: "o", Version: 3},
		positions: [2]eventlog.Position{{TopicPartition: eventlog.TopicPartition{Topic: eventlog.Orders, Partition: 1}, Offset: 9}}}, domain.Refuse(order.CodeOfferExpired, "too late"))
	if err != nil {
		t.Fatal(err)
	}
	res, err := decodeAnswer(eventlog.Orders, answer)
	if domain.RefusedWith(err) != order.CodeOfferExpired || res.Order.Version != 3 || res.Event.EventType() != "ORDER_PICKED_UP" || res.Token().String() != "AAEJ" {
		t.Fatalf("%+v, %v", res, err)
	}
}

// testClusterKey is the cluster key in tests.
const testClusterKey = "of the tests of the shards, 32 bytes"

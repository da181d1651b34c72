package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"tomato/cmd/tomato/servertest"
	"tomato/commandside"
	"tomato/commandside/gateway"
	"tomato/commandside/policies"
	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys/subjectkeystest"
	"tomato/httpapi"
)

// domainCodes reads the codes of refusals in the source of the domain.
func domainCodes(t *testing.T) (codes []domain.Code) {
	t.Helper()
	files, err := filepath.Glob("../../../domain/*.go")
	ofAggregates, aerr := filepath.Glob("../../../domain/*/*.go")
	if err = errors.Join(err, aerr); err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, ofAggregates...) {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok || len(v.Values) != 1 {
				return true
			}
			isCode := false
			switch typ := v.Type.(type) {
			case *ast.Ident:
				isCode = typ.Name == "Code"
			case *ast.SelectorExpr:
				isCode = typ.Sel.Name == "Code"
			}
			if lit, ok := v.Values[0].(*ast.BasicLit); ok && isCode {
				code, _ := strconv.Unquote(lit.Value)
				codes = append(codes, domain.Code(code))
			}
			return true
		})
	}
	if len(codes) < 20 {
		t.Fatalf("only %d codes", len(codes))
	}
	return codes
}

// playedShards is an Executor. The first good commands succeed, and all later ones are
// refused.
type playedShards struct {
	good    int
	refusal error
	asked   []string // the topics of the commands
}

func (p *playedShards) Execute(_ context.Context, r shard.Request) (shard.Result, error) {
	p.asked = append(p.asked, r.Topic)
	res := shard.Result{Status: 200, Known: []bool{true},
		Order:      &order.State{ID: freshOrder, Version: 3, Status: order.StatusReadyForRider, RiderID: "some-rider", ClaimID: 1, Currency: "INR", Amount: 1},
		Payment:    &payment.State{OrderID: freshOrder, Version: 2, Booked: "pay_1"},
		Rider:      &rider.State{ID: "some-rider", Version: 2, Claim: &rider.Claim{ID: 1}},
		Restaurant: &restaurant.State{ID: "some-restaurant", Version: 2}}
	archivable := r.Topic == eventlog.Orders || r.Topic == eventlog.Payments
	switch command := r.Command.(type) {
	case shard.Place:
		archivable, res.Status = false, 201
	case payment.RequestPayment:
		res.Payment.Provider, res.Payment.GatewayOrderID = command.Provider, command.GatewayOrderID
	}
	if p.good--; p.good >= 0 || domain.RefusedWith(p.refusal) == order.CodeArchived && !archivable {
		return res, nil
	}
	return res, p.refusal
}

// playedGateway is a gateway whose calls return err.
type playedGateway struct {
	gateway.Gateway
	err error
}

func (playedGateway) Provider() string { return "razorpay" }
func (playedGateway) KeyID() string    { return "key" }
func (g playedGateway) CreateOrder(context.Context, string, int64, string) (gateway.Order, error) {
	return gateway.Order{GatewayOrderID: "order_1"}, g.err
}
func (g playedGateway) Payment(context.Context, string) (gateway.Payment, error) {
	return gateway.Payment{PaymentID: "pay_1", GatewayOrderID: "order_1"}, g.err
}

type playedOrders struct{ err error }

func (o playedOrders) OrderOf(context.Context, string, eventlog.Token) (string, bool, error) {
	return freshOrder, true, o.err
}

// TestCommandsDeclareWhatTheyAnswer checks that /openapi.json has every answer of a
// command with its status and its form, whatever a shard, the gateway or the read model
// returns.
func TestCommandsDeclareWhatTheyAnswer(t *testing.T) {
	t.Parallel()
	auth, err := httpapi.NewAuthenticator(httpapi.AuthConfig{Secrets: []string{servertest.JWTSecret}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(auth.Close)
	var refusals []error
	for _, code := range append(domainCodes(t), shard.VersionMismatch, shard.IdempotencyKeyReused, shard.IdempotencyInProgress) {
		refusals = append(refusals, domain.Refuse(code, "because"))
	}
	refusals = append(refusals, nil, shard.ErrUnavailable, context.DeadlineExceeded)
	away := errors.New("away")
	c := &contract{}
	answers := 0
	for _, outside := range []struct{ gateway, index, keys error }{{}, {gateway: gateway.ErrRefused}, {gateway: gateway.ErrUnknown}, {gateway: away}, {index: away}, {keys: eventlog.Unavailable(away)}} {
		shards := &playedShards{}
		side := &commandside.Side{Config: commandside.Config{CommandDeadline: time.Minute}, Commands: shards, Keys: &subjectkeystest.Keys{Err: outside.keys}, Gateway: playedGateway{err: outside.gateway},
			Orders: &policies.OrderFinder{ReadModel: playedOrders{outside.index}, Gateway: playedGateway{err: outside.gateway}}, Partitions: 1, Log: slog.New(slog.DiscardHandler)}
		api := httpapi.New(httpapi.Options{Auth: auth, Log: side.Log})
		side.Routes(api)
		document, err := json.Marshal(api.OpenAPI)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(document, &c.spec); err != nil {
			t.Fatal(err)
		}
		for _, row := range contractRows {
			if row.method == "GET" || strings.Contains(row.path, "dead-letters") || strings.Contains(row.path, "erasures") || strings.Contains(row.path, "revocations") || strings.Contains(row.path, "location") { // positions are produced to Kafka, which this test does not have
				continue
			}
			actor := someActor(strings.Fields(row.roles)[0])
			for _, refusal := range refusals {
				for good := range 4 {
					shards.good, shards.refusal, shards.asked = good, refusal, nil
					r := httptest.NewRequest(row.method, row.path, strings.NewReader(row.body))
					r.Header.Set("Authorization", "Bearer "+servertest.Token(t, actor))
					r.Header.Set("Content-Type", "application/json")
					w := httptest.NewRecorder()
					api.ServeHTTP(w, r)
					x := &reply{Answer: servertest.Answer{Status: w.Code, Header: w.Header(), Body: w.Body.Bytes()}}
					_ = json.Unmarshal(x.Body, &x.body)
					for _, fault := range c.specFaults(row.method, row.path, x) {
						t.Errorf("%s %s, told %v by %v: %d: %s: %s", row.method, row.path, refusal, shards.asked, x.Status, fault, x.Body)
					}
					if x.Status == 500 {
						t.Errorf("%s %s, told %v: %s", row.method, row.path, refusal, x.Body)
					}
					answers++
				}
			}
		}
	}
	if answers < 5*25*20 {
		t.Errorf("%d answers", answers)
	}
}

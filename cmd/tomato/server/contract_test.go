package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/cmd/tomato/server"
	"tomato/cmd/tomato/servertest"
	"tomato/cmd/tomato/settings"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/httpapi"
	"tomato/projections/realtime"
)

// The contract tests (files contract_*_test.go) check what clients may rely on. They talk
// to a whole server over HTTP and websockets, and know nothing of its inside. Every
// answer is compared with /openapi.json and with the rules that hold for all answers
// (faultsOfAny, problemFaults).

// contract is a running server, with what the contract tests need.
type contract struct {
	*servertest.Installation
	spec  map[string]any
	api   *httpapi.API
	names atomic.Int64
	logID eventlog.LogID
}

var (
	anOps    = domain.Actor{Sub: "ops-1", Role: domain.Ops}
	aSupport = domain.Actor{Sub: "support-1", Role: domain.Support}
	noActor  = domain.Actor{}
)

func customerActor(id string) domain.Actor { return domain.Actor{Sub: id, Role: domain.Customer} }

func riderActor(id string) domain.Actor { return domain.Actor{Sub: id, Role: domain.Rider} }

func restaurantActor(id string) domain.Actor {
	return domain.Actor{Sub: "staff-1", Role: domain.Restaurant, RestaurantID: id}
}

// startContract starts a server with the default times (docs/operations.md), but with
// offers that last ten minutes, and waits until it is ready. change may change the
// configuration before; it may be nil.
func startContract(t *testing.T, change func(*server.Config)) *contract {
	t.Helper()
	c := &contract{Installation: servertest.New(t, eventlogtest.Embedded(t), "--partitions", "3", "--offer-ttl", "10m")}
	c.Options.ExtraRoutes = func(api *httpapi.API) { c.api = api }
	c.Config.WebhookSecrets = append(c.Config.WebhookSecrets, "an old one")
	if change != nil {
		change(&c.Config)
	}
	c.Start()
	c.logID = c.Server.LogID()
	if err := json.Unmarshal(c.Must(noActor, "GET /openapi.json", nil).Body, &c.spec); err != nil {
		t.Fatal("openapi.json:", err)
	}
	return c
}

// name returns an id that no other test uses.
func (c *contract) name(prefix string) string { return fmt.Sprintf("%s-%d", prefix, c.names.Add(1)) }

// reply is an answer. body is nil if the answer's body is not a JSON object.
type reply struct {
	servertest.Answer
	body map[string]any
}

// do sends a request and checks the answer against /openapi.json and the rules for all
// answers. A body that is a string is sent as it is, nil means no body, and anything
// else is sent as JSON. headers are pairs of name and value.
func (c *contract) do(t testing.TB, a domain.Actor, method, path string, body any, headers ...string) *reply {
	t.Helper()
	x := &reply{Answer: c.As(t).Do(a, method+" "+path, body, headers...)}
	if x.Err != nil {
		t.Fatal(x.Fault())
	}
	if len(x.Body) > 0 && strings.Contains(x.Header.Get("Content-Type"), "json") {
		var v any
		if err := json.Unmarshal(x.Body, &v); err != nil {
			t.Errorf("%s: not JSON: %v", x.Request, err)
		}
		x.body, _ = v.(map[string]any)
		for _, fault := range faultsOfAny(v, "") {
			if strings.HasSuffix(path, "api.json") {
				break // /openapi.json and /asyncapi.json follow other standards
			}
			t.Errorf("%s: %s in %.400s", x.Request, fault, x.Body)
		}
	}
	for _, fault := range x.problemFaults() {
		t.Errorf("%s: %s: %d %.400s", x.Request, fault, x.Status, x.Body)
	}
	for _, fault := range c.specFaults(method, path, x) {
		t.Errorf("%s: openapi.json: %s: %d %.600s", x.Request, fault, x.Status, x.Body)
	}
	return x
}

func (c *contract) send(t testing.TB, method, path string, body any, headers ...string) *reply {
	t.Helper()
	return c.do(t, noActor, method, path, body, headers...)
}

var camelCaseName = regexp.MustCompile(`^[a-z][a-zA-Z0-9]*$`)

// faultsOfAny checks a JSON value against the rules that hold for all answers and feed
// messages: nothing is null, names are in camel case, and times are in UTC.
func faultsOfAny(v any, at string) (faults []string) {
	switch v := v.(type) {
	case nil:
		return []string{at + " is null"}
	case []any:
		for i, e := range v {
			faults = append(faults, faultsOfAny(e, fmt.Sprintf("%s[%d]", at, i))...)
		}
	case map[string]any:
		for k, e := range v {
			if !camelCaseName.MatchString(k) {
				faults = append(faults, "the name "+k+" is not camelCaseName")
			}
			if s, ok := e.(string); ok && (strings.HasSuffix(k, "At") || k == "acceptBy" || k == "timestamp") {
				if at, err := time.Parse(time.RFC3339, s); err != nil || !strings.HasSuffix(s, "Z") || at.Year() < 2000 {
					faults = append(faults, k+" is no time in UTC")
				}
			}
			faults = append(faults, faultsOfAny(e, at+"."+k)...)
		}
	}
	return faults
}

// problemFaults checks that an error has the form that all errors of Tomato have: it is a
// problem by RFC 9457, with a code and the headers that belong to its status.
func (x *reply) problemFaults() (faults []string) {
	if x.Status == http.StatusInternalServerError {
		return []string{"a 500"}
	}
	if x.Status < 400 {
		return nil
	}
	code, _ := x.body["code"].(string)
	if ct := x.Header.Get("Content-Type"); ct != "application/problem+json" {
		faults = append(faults, "Content-Type "+ct)
	}
	if x.body["status"] != float64(x.Status) || code == "" || x.body["type"] != "/problems/"+strings.ReplaceAll(code, "_", "-") || x.body["title"] == "" || x.body["detail"] == "" {
		faults = append(faults, "not a problem with code, type, title, status and detail")
	}
	needs := map[int]string{401: "WWW-Authenticate", 405: "Allow", 429: "Retry-After", 503: "Retry-After"}[x.Status]
	if needs != "" && x.Header.Get(needs) == "" {
		faults = append(faults, "no "+needs)
	}
	return faults
}

// want fails unless the answer has the status and, for problems, the code.
func (x *reply) want(t testing.TB, status int, code ...string) *reply {
	t.Helper()
	if x.Status != status || len(code) > 0 && x.body["code"] != code[0] {
		t.Errorf("%s: got %d %.500s, want %d %v", x.Request, x.Status, x.Body, status, code)
	}
	return x
}

// locations returns the locations of the faults in errors[], separated by spaces.
func (x *reply) locations() string {
	var at []string
	list, _ := x.body["errors"].([]any)
	for _, e := range list {
		m, _ := e.(map[string]any)
		s, _ := m["location"].(string)
		at = append(at, s)
	}
	return strings.Join(at, " ")
}

func (x *reply) num(name string) int { n, _ := x.body[name].(float64); return int(n) }

func (x *reply) items() []any { l, _ := x.body["items"].([]any); return l }

// command sends a command that must succeed, and checks the headers ETag and
// Consistency-Token of the answer.
func (c *contract) command(t testing.TB, a domain.Actor, method, path string, body any, headers ...string) *reply {
	t.Helper()
	x := c.do(t, a, method, path, body, headers...)
	if x.Status != 200 && x.Status != 201 {
		t.Fatalf("%s: %d %s", x.Request, x.Status, x.Body)
	}
	if v, ok := x.body["version"]; ok && x.Header.Get("ETag") != fmt.Sprintf(`"%v"`, v) {
		t.Errorf("%s: ETag %s of version %v", x.Request, x.Header.Get("ETag"), v)
	}
	if !regexp.MustCompile(`^[A-Za-z0-9_-]+$`).MatchString(x.Token()) {
		t.Errorf("%s: Consistency-Token %q", x.Request, x.Token())
	}
	return x
}

// badTokens returns invalid tokens, by what is wrong with them.
func (c *contract) badTokens(t testing.TB, a domain.Actor) map[string]string {
	t.Helper()
	sign := func(method jwt.SigningMethod, key any, change func(jwt.MapClaims)) string {
		m := jwt.MapClaims{"sub": a.Sub, "role": string(a.Role), "exp": time.Now().Add(time.Hour).Unix()}
		if a.RestaurantID != "" {
			m["restaurantId"] = a.RestaurantID
		}
		if change != nil {
			change(m)
		}
		s, err := jwt.NewWithClaims(method, m).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	hs := func(change func(jwt.MapClaims)) string {
		return sign(jwt.SigningMethodHS256, []byte(servertest.JWTSecret), change)
	}
	bad := map[string]string{
		"none":             "",
		"garbage":          "abc.def.ghi",
		"expired":          hs(func(m jwt.MapClaims) { m["exp"] = time.Now().Add(-time.Second).Unix() }),
		"without exp":      hs(func(m jwt.MapClaims) { delete(m, "exp") }),
		"forged":           sign(jwt.SigningMethodHS256, []byte("another secret"), nil),
		"algorithm none":   sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil),
		"HS512":            sign(jwt.SigningMethodHS512, []byte(servertest.JWTSecret), nil),
		"unknown role":     hs(func(m jwt.MapClaims) { m["role"] = "admin" }),
		"role system":      hs(func(m jwt.MapClaims) { m["role"] = "system" }),
		"without role":     hs(func(m jwt.MapClaims) { delete(m, "role") }),
		"without sub":      hs(func(m jwt.MapClaims) { delete(m, "sub") }),
		"sub no id":        hs(func(m jwt.MapClaims) { m["sub"] = "a b" }),
		"no restaurant":    hs(func(m jwt.MapClaims) { m["role"] = "restaurant"; delete(m, "restaurantId") }),
		"restaurant no id": hs(func(m jwt.MapClaims) { m["role"] = "restaurant"; m["restaurantId"] = "a/b" }),
	}
	return bad
}

// ends returns the end offsets of all topics that a request may append to.
func (c *contract) ends(t testing.TB) map[eventlog.TopicPartition]int64 {
	t.Helper()
	topics := []string{eventlog.Orders, eventlog.Payments, eventlog.Riders, eventlog.Restaurants, eventlog.RiderLocations, eventlog.PaymentWebhooks, eventlog.Feed}
	found, err := kadm.NewClient(eventlogtest.Client(t, c.Kafka)).ListEndOffsets(t.Context(), topics...)
	if err != nil || found.Error() != nil {
		t.Fatal(err, found.Error())
	}
	ends := map[eventlog.TopicPartition]int64{}
	found.Each(func(o kadm.ListedOffset) {
		ends[eventlog.TopicPartition{Topic: o.Topic, Partition: o.Partition}] = o.Offset
	})
	return ends
}

// appendedSince returns the topics and types of the records that were appended since
// before.
func (c *contract) appendedSince(t testing.TB, before map[eventlog.TopicPartition]int64) (types []string) {
	t.Helper()
	from := map[string]map[int32]kgo.Offset{}
	left := map[eventlog.TopicPartition]int64{}
	for tp, end := range c.ends(t) {
		if end > before[tp] {
			if from[tp.Topic] == nil {
				from[tp.Topic] = map[int32]kgo.Offset{}
			}
			from[tp.Topic][tp.Partition] = kgo.NewOffset().At(before[tp])
			left[tp] = end
		}
	}
	if len(left) == 0 {
		return nil
	}
	client := eventlogtest.Client(t, c.Kafka, kgo.ConsumePartitions(from))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(left) > 0 {
		client.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			tp := eventlog.TopicPartition{Topic: r.Topic, Partition: r.Partition}
			for _, h := range r.Headers {
				if h.Key == "ce_type" && string(h.Value) != realtime.BaseType { // bases are appended from time to time
					types = append(types, r.Topic+":"+string(h.Value))
				}
			}
			if r.Offset+1 >= left[tp] {
				delete(left, tp)
			}
		})
		if ctx.Err() != nil {
			t.Fatal("the appended records could not be read")
		}
	}
	return types
}

// pointAt is a GeoJSON Point.
func pointAt(lng, lat float64) map[string]any {
	return map[string]any{"type": "Point", "coordinates": []float64{lng, lat}}
}

func TestContract(t *testing.T) {
	t.Parallel()
	c := startContract(t, nil)
	t.Run("refused requests", func(t *testing.T) { c.refusedRequests(t) }) // before the others, because it compares the ends of the logs
	for column, state := range states {
		if state != "expired" {
			t.Run("order "+state, func(t *testing.T) { t.Parallel(); c.orderTable(t, column) })
		}
	}
	for name, test := range map[string]func(*testing.T){"riders": c.riderTable, "placing": c.placing, "places": c.places, "payments": c.payments, "feeds": c.feeds, "privacy": c.privacy, "rights": c.rights, "support": c.support} {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(t) })
	}
}

func TestContractDeadlines(t *testing.T) {
	t.Parallel()
	c := startContract(t, func(cmd *server.Config) {
		cmd.PaymentTTL, cmd.PaymentGrace, cmd.AcceptTTL, cmd.OfferTTL = settings.Duration(6*time.Second), settings.Duration(time.Second), settings.Duration(6*time.Second), settings.Duration(2*time.Second)
	})
	t.Run("order expired", func(t *testing.T) { t.Parallel(); c.orderTable(t, len(states)-1) })
	c.deadlines(t)
}

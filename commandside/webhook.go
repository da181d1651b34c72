package commandside

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/commandside/gateway"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys"
	"tomato/httpapi"
)

const (
	inboxSource     = "/tomato/webhooks/razorpay"
	inboxTimeout    = 4 * time.Second // less than the five seconds that Razorpay waits for an answer
	maxEventID      = 255             // bytes; a longer event id of the gateway is not kept
	maxWebhookBytes = 256 << 10       // Razorpay's webhooks have a few KiB
)

// webhookRoute registers the endpoint that the gateway sends its webhooks to.
func (s *Side) webhookRoute(api *httpapi.API) {
	httpapi.Register(api.Behind(signed, false), huma.Operation{Method: http.MethodPost, Path: "/v1/webhooks/razorpay", OperationID: "take-webhook", DefaultStatus: http.StatusOK,
		MaxBodyBytes: maxWebhookBytes, Summary: "Take a webhook of the gateway",
		Description: "Authenticated by its signature. 200 once it is kept, whatever it holds; 503 only when it could not be kept.",
		Errors:      []int{http.StatusUnauthorized}}, nil, s.takeWebhook)
}

// signed refuses a webhook whose signature does not have the form of one. The body
// of such a webhook is not read.
func signed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !gateway.IsSignature(r.Header.Get(gateway.SignatureHeader)) {
			httpapi.Refuse(w, r, wrongSignature())
			return
		}
		next.ServeHTTP(w, r)
	})
}

func wrongSignature() *httpapi.Problem {
	return httpapi.Unauthorized(`Razorpay-Signature realm="tomato"`, "The webhook's signature is missing or wrong.")
}

type webhookInput struct {
	Signature string `header:"X-Razorpay-Signature"`
	EventID   string `header:"X-Razorpay-Event-Id"`
	RawBody   []byte
}

// takeWebhook keeps a webhook in the inbox, keyed so that all webhooks of one gateway
// order stay in sequence. It decides nothing: the policy record-payment does. What
// Tomato does not use of it is not kept. A body that is not a webhook is kept as a whole,
// in sealed form. It has a key of its own, and becomes a dead letter of that policy.
func (s *Side) takeWebhook(ctx context.Context, in *webhookInput) (*struct{}, error) {
	if !gateway.Verify(s.WebhookSecrets, in.RawBody, in.Signature) {
		return nil, wrongSignature()
	}
	ctx, cancel := context.WithTimeout(ctx, inboxTimeout)
	defer cancel()
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	key := id.String()
	w, kept, err := gateway.Kept(in.RawBody)
	if k := w.InboxKey(); err == nil && k != "" {
		key = k
	}
	// The simulated gateway must know the payment before the record below exists,
	// because a refund of it may be asked for from then on.
	if sim, ok := s.Gateway.(*gateway.Simulated); ok && err == nil && w.Payment != nil {
		if err := sim.Accepted(ctx, *w.Payment); err != nil {
			return nil, s.notKept(err)
		}
	}
	now := time.Now().UTC()
	if err != nil {
		if kept, err = s.sealBody(ctx, now, in.RawBody, err); err != nil {
			return nil, s.notKept(err)
		}
	}
	e := eventlog.Event{ID: id.String(), Source: inboxSource, Type: gateway.TypeWebhookReceived, Time: domain.Time(now), Subject: key, Data: kept}
	rec := e.NewRecord(eventlog.PaymentWebhooks, eventlog.PartitionFor(key, s.Partitions))
	if in.EventID != "" && len(in.EventID) <= maxEventID {
		rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: "x-razorpay-event-id", Value: []byte(in.EventID)})
	}
	if err := s.produce(ctx, rec); err != nil {
		if errors.Is(err, kerr.MessageTooLarge) {
			return nil, httpapi.NewProblem(http.StatusRequestEntityTooLarge, "body_too_large", "The body is larger than the inbox takes.")
		}
		return nil, s.notKept(err)
	}
	return nil, nil
}

// sealBody returns the data of a body that could not be decoded because of fault. It is
// sealed under the key of its month, because nobody knows whose data it is.
func (s *Side) sealBody(ctx context.Context, now time.Time, body []byte, fault error) ([]byte, error) {
	subject := subjectkeys.WebhooksOf(now)
	sealed, err := s.Keys.Seal(ctx, subject, subjectkeys.FieldBody, body)
	if err != nil {
		return nil, err
	}
	return json.Marshal(gateway.SealedBody{Sealed: string(sealed), Subject: subject.String(), Fault: fault.Error()})
}

func (s *Side) notKept(err error) error {
	s.Log.Error("a webhook could not be kept; the gateway will send it again", "err", err)
	return httpapi.Unavailable("unavailable", "The webhook could not be kept.", time.Second)
}

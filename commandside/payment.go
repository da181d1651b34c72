package commandside

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"tomato/commandside/gateway"
	"tomato/commandside/policies"
	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/payment"
	"tomato/eventlog"
	"tomato/httpapi"
)

const gatewayTimeout = 8 * time.Second // for /payment to open the gateway order

// paymentRoutes registers what customers and operators do with payments, and what
// the gateway tells of them.
func (s *Side) paymentRoutes(api *httpapi.API) {
	open := operation(http.MethodPost, "/v1/orders/{id}/payment", "open-payment", "Open the payment of an order", http.StatusBadGateway)
	open.Description = "Repeats with the same gateway order while the order is payable. If-Match and ETag are the order's."
	httpapi.Register(api, open, []domain.Role{domain.Customer}, s.openPayment)

	s.webhookRoute(api)

	httpapi.Register(api, huma.Operation{Method: http.MethodPost, Path: "/v1/simulated-gateway/orders/{gatewayOrderId}/pay", OperationID: "simulate-payment", DefaultStatus: http.StatusAccepted,
		Summary:     "Make the simulated gateway act",
		Description: "404 with a real gateway. With a delay the payment itself happens later.",
		Errors:      []int{http.StatusNotFound}}, []domain.Role{domain.Customer, domain.Ops}, s.simulatePayment)

	refund := operation(http.MethodPost, "/v1/payments/{orderId}/refund", "refund-payment", "Refund, or refund again after a failure")
	refund.Description = "Without paymentId: the payment whose refund failed or is under way, else the one that paid the order."
	httpapi.Register(api, refund, []domain.Role{domain.Ops}, s.refundPayment)
	httpapi.Register(api, operation(http.MethodPost, "/v1/ops/payments/{paymentId}/resolve", "resolve-payment", "Close an unmatched payment"),
		[]domain.Role{domain.Ops}, s.resolvePayment)
}

type openPaymentInput struct {
	orderInput
}

type openPaymentOutput struct {
	ETag             string `header:"ETag"`
	ConsistencyToken string `header:"Consistency-Token"`
	Body             struct {
		Provider       string `json:"provider" enum:"razorpay,simulated"`
		GatewayOrderID string `json:"gatewayOrderId"`
		KeyID          string `json:"keyId"`
		Amount         int64  `json:"amount"`
		Currency       string `json:"currency"`
	}
}

// openPayment asks the shard first. It makes no gateway order if the shard refuses
// the payment or has it open already. A gateway order that was made for a request
// which then fails is never shown to anybody, so nobody can pay on it.
func (s *Side) openPayment(ctx context.Context, in *openPaymentInput) (*openPaymentOutput, error) {
	match := in.IfMatch // the version of the order; a command on the payment would compare it with the payment's version
	in.IfMatch = httpapi.IfMatch{}
	ask := payment.RequestPayment{OrderID: string(in.ID), Provider: s.Gateway.Provider()}
	request := shard.Request{Topic: eventlog.Payments, ID: string(in.ID), Command: ask}
	res, err := s.execute(ctx, in.commandInput, nil, request)
	if err != nil {
		var p *httpapi.Problem
		if res.Order != nil && errors.As(err, &p) && p.Status == http.StatusConflict && p.RetryAfter == 0 {
			if err := match.Check(res.Order.Version); err != nil {
				return nil, err
			}
		}
		return nil, notFoundAs("order", err)
	}
	if res.Payment == nil || res.Payment.GatewayOrderID == "" {
		if res.Order == nil {
			return nil, httpapi.NewProblem(http.StatusNotFound, "order_not_found", "There is no such order.")
		}
		if err := match.Check(res.Order.Version); err != nil {
			return nil, err
		}
		gctx, cancel := context.WithTimeout(ctx, gatewayTimeout)
		opened, err := s.Gateway.CreateOrder(gctx, string(in.ID), res.Order.Amount, res.Order.Currency)
		cancel()
		if err != nil {
			return nil, s.gatewayProblem("open a gateway order", err)
		}
		ask.GatewayOrderID = opened.GatewayOrderID
		request.Command = ask
		if res, err = s.execute(ctx, in.commandInput, nil, request); err != nil {
			return nil, notFoundAs("order", err)
		}
	}
	out := &openPaymentOutput{ConsistencyToken: s.token(&res)}
	if res.Order != nil {
		out.ETag = httpapi.ETag(res.Order.Version)
	}
	p := res.Payment // it has the gateway order of another request, if that was faster
	out.Body.Provider, out.Body.GatewayOrderID, out.Body.Amount, out.Body.Currency = p.Provider, p.GatewayOrderID, p.Amount, p.Currency
	out.Body.KeyID = s.Gateway.KeyID()
	return out, nil
}

// gatewayProblem logs a failure of the gateway and returns what the caller sees of it.
// The text of err goes only to the log, because it may name amounts and accounts.
func (s *Side) gatewayProblem(doing string, err error) error {
	s.Log.Warn("the payment gateway failed", "doing", doing, "err", err)
	if errors.Is(err, gateway.ErrRefused) || errors.Is(err, gateway.ErrUnknown) {
		return httpapi.NewProblem(http.StatusBadGateway, "gateway_refused", "The payment gateway does not take this payment.")
	}
	return httpapi.Unavailable("unavailable", "The payment gateway cannot be reached now.", time.Second)
}

// notFoundAs replaces a 404 by one with the noun of the path, such as order_not_found.
// It returns all other errors unchanged.
func notFoundAs(noun string, err error) error {
	var p *httpapi.Problem
	if errors.As(err, &p) && p.Status == http.StatusNotFound {
		return httpapi.NewProblem(http.StatusNotFound, noun+"_not_found", "There is no such "+noun+".")
	}
	return err
}

type simulateInput struct {
	GatewayOrderID httpapi.ID `path:"gatewayOrderId"`
	Body           struct {
		Outcome   string          `json:"outcome" enum:"captured,authorized,failed"`
		Amount    int64           `json:"amount,omitempty" minimum:"1" maximum:"100000000" doc:"Minor units; what the order asks for unless given."`
		Currency  string          `json:"currency,omitempty" pattern:"^[A-Z]{3}$" doc:"The order's unless given."`
		PaymentID string          `json:"paymentId,omitempty" pattern:"^[A-Za-z0-9_-]{1,64}$" doc:"A new one unless given. The same one again is the same payment going on."`
		Delay     string          `json:"delay,omitempty" pattern:"^([0-9]+(\\.[0-9]+)?(ms|s|m|h))+$" doc:"Until it happens: 250ms, 20m. At most 720h." example:"250ms"`
		Faults    []gateway.Fault `json:"faults,omitempty" enum:"duplicate,reordered,dropped,wrong_signature,old_secret" maxItems:"5"`
	}
	delay time.Duration
}

// Faults checks the delay.
func (in *simulateInput) Faults() []httpapi.FieldError {
	if in.Body.Delay == "" {
		return nil
	}
	d, err := time.ParseDuration(in.Body.Delay)
	if err != nil || d < 0 || d > gateway.MaxDelay {
		return []httpapi.FieldError{{Location: "body.delay", Message: "expected a duration from 0s to 720h, such as 250ms"}}
	}
	in.delay = d
	return nil
}

type simulateOutput struct {
	Body struct {
		PaymentID string `json:"paymentId"`
	}
}

func (s *Side) simulatePayment(ctx context.Context, in *simulateInput) (*simulateOutput, error) {
	sim, ok := s.Gateway.(*gateway.Simulated)
	if !ok {
		return nil, httpapi.NewProblem(http.StatusNotFound, "not_configured", "A real payment gateway is configured; nothing is simulated.")
	}
	unknown := httpapi.NewProblem(http.StatusNotFound, "gateway_order_not_found", "There is no such gateway order.")
	if actor := httpapi.Actor(ctx); actor.Role != domain.Ops {
		orderID, err := sim.Order(ctx, string(in.GatewayOrderID))
		if errors.Is(err, gateway.ErrUnknown) {
			return nil, unknown
		} else if err != nil {
			return nil, s.gatewayProblem("find a gateway order", err)
		}
		state, err := policies.PaymentState(ctx, orderID, s.system)
		switch {
		case domain.RefusedWith(err) != "":
			return nil, unknown
		case err != nil:
			return nil, problem(eventlog.Payments, err)
		case state == nil || state.CustomerID != actor.Sub:
			return nil, unknown
		}
	}
	id, err := sim.Pay(ctx, string(in.GatewayOrderID), gateway.Pay{Outcome: in.Body.Outcome, Amount: in.Body.Amount, Currency: in.Body.Currency,
		PaymentID: in.Body.PaymentID, Delay: in.delay, Faults: in.Body.Faults})
	switch {
	case errors.Is(err, gateway.ErrUnknown):
		return nil, unknown
	case errors.Is(err, gateway.ErrPaymentTaken):
		return nil, httpapi.Invalid(httpapi.FieldError{Location: "body.paymentId", Message: "belongs to another gateway order"})
	case err != nil:
		return nil, s.gatewayProblem("simulate a payment", err)
	}
	out := &simulateOutput{}
	out.Body.PaymentID = id
	return out, nil
}

type paymentOutput struct {
	ETag             string `header:"ETag"`
	ConsistencyToken string `header:"Consistency-Token"`
	Body             payment.View
}

func (s *Side) newPaymentOutput(res shard.Result) *paymentOutput {
	return &paymentOutput{ETag: httpapi.ETag(res.Payment.Version), ConsistencyToken: s.token(&res), Body: payment.NewView(res.Payment)}
}

type refundInput struct {
	commandInput
	OrderID httpapi.ID `path:"orderId"`
	Body    struct {
		Reason    httpapi.Text `json:"reason"`
		PaymentID string       `json:"paymentId,omitempty" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	}
}

func (s *Side) refundPayment(ctx context.Context, in *refundInput) (*paymentOutput, error) {
	command := payment.RequestRefund{PaymentID: in.Body.PaymentID, RefundID: uuid.NewString(), Reason: string(in.Body.Reason), ByOps: true}
	state, err := policies.PaymentState(ctx, string(in.OrderID), s.system)
	switch {
	case err != nil && domain.RefusedWith(err) == "":
		return nil, problem(eventlog.Payments, err)
	case err != nil || state == nil:
		return nil, httpapi.NewProblem(http.StatusNotFound, "payment_not_found", "There is no payment of this order.")
	}
	if command.PaymentID == "" {
		command.PaymentID = toRefund(state)
	}
	res, err := s.execute(ctx, in.commandInput, in.Body, shard.Request{Topic: eventlog.Payments, ID: string(in.OrderID), Command: command})
	if err != nil {
		return nil, notFoundAs("payment", err)
	}
	return s.newPaymentOutput(res), nil
}

// toRefund chooses the payment for an operator who names none. It is one whose
// refund failed. If there is none, it is one whose refund is under way, so that a
// repeat changes nothing. Otherwise it is the booked one. The booked one comes first
// among several of a kind.
func toRefund(s *payment.State) string {
	for _, status := range []payment.RefundStatus{payment.RefundStatusFailed, payment.RefundStatusRequested} {
		ids := []string{s.Booked}
		for _, a := range s.Attempts {
			ids = append(ids, a.PaymentID)
		}
		i := slices.IndexFunc(ids, func(id string) bool {
			r, ok := s.RefundOf(id)
			return ok && r.Status == status && !s.WasRefunded(id)
		})
		if i >= 0 {
			return ids[i]
		}
	}
	return s.Booked
}

type resolveInput struct {
	commandInput
	PaymentID httpapi.ID `path:"paymentId"`
	Body      struct {
		Reason httpapi.Text `json:"reason"`
	}
}

// resolvePayment looks for the payment as an aggregate of its own first, then
// in the order that its gateway order belongs to.
func (s *Side) resolvePayment(ctx context.Context, in *resolveInput) (*paymentOutput, error) {
	request := shard.Request{Topic: eventlog.Payments, ID: string(in.PaymentID),
		Command: payment.Resolve{PaymentID: string(in.PaymentID), Reason: string(in.Body.Reason), By: httpapi.Actor(ctx).Sub}}
	unknown := httpapi.NewProblem(http.StatusNotFound, "payment_not_found", "There is no such payment.")
	res, err := s.execute(ctx, in.commandInput, in.Body, request)
	if err == nil {
		return s.newPaymentOutput(res), nil
	}
	var p *httpapi.Problem
	if !errors.As(err, &p) || p.Status != http.StatusNotFound && p.Status != http.StatusPreconditionFailed {
		return nil, err
	}
	if p.Status == http.StatusPreconditionFailed && res.Payment != nil {
		return nil, err // the payment exists, with another version
	}
	found, err := s.Gateway.Payment(ctx, string(in.PaymentID))
	if errors.Is(err, gateway.ErrUnknown) || errors.Is(err, gateway.ErrRefused) {
		return nil, unknown
	} else if err != nil {
		return nil, s.gatewayProblem("find a payment", err)
	}
	orderID, ok, err := s.Orders.OrderOf(ctx, found.GatewayOrderID)
	if err != nil {
		s.Log.Warn("the order of a payment could not be looked up", "paymentId", in.PaymentID, "err", err)
		return nil, httpapi.Unavailable("unavailable", "The payment's order cannot be looked up now.", time.Second)
	}
	if !ok {
		return nil, unknown
	}
	request.ID = orderID
	if res, err = s.execute(ctx, in.commandInput, in.Body, request); err != nil {
		return nil, notFoundAs("payment", err)
	}
	return s.newPaymentOutput(res), nil
}

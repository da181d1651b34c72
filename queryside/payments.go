package queryside

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/domain"
	"tomato/domain/payment"
	"tomato/httpapi"
)

// paymentModel names the read model of the payments.
const paymentModel = "payments"

type paymentInput struct {
	queryInput
	ID httpapi.ID `path:"orderId"`
}

type paymentOutput struct {
	ETag  string `header:"ETag"`
	Token string `header:"Consistency-Token"`
	Body  payment.View
}

type opsPaymentsInput struct {
	queryInput
	page
	State string `query:"state" enum:"unmatched,refund_failed" doc:"Default: both."`
}

type opsPaymentsOutput struct {
	Token string `header:"Consistency-Token"`
	Body  struct {
		Items      []payment.View `json:"items"`
		NextCursor string         `json:"nextCursor,omitempty"`
	}
}

func (s *Side) paymentRoutes(api *httpapi.API) {
	httpapi.Register(api, operation("/v1/payments/{orderId}", "getPayment", "The payment of an order", 404),
		[]domain.Role{domain.Customer, domain.Restaurant, domain.Ops, domain.Support}, s.getPayment)
	httpapi.Register(api, operation("/v1/ops/payments", "listOpsPayments", "Payments that wait for an operator, newest first"),
		[]domain.Role{domain.Ops, domain.Support}, s.listOpsPayments)
}

// paymentParty reports whether the caller may see the payment.
func paymentParty(s *payment.State, a domain.Actor) bool {
	switch a.Role {
	case domain.Ops, domain.Support:
		return true
	case domain.Customer:
		return a.Sub == s.CustomerID
	case domain.Restaurant:
		return a.RestaurantID == s.RestaurantID
	}
	return false
}

func (s *Side) getPayment(ctx context.Context, in *paymentInput) (*paymentOutput, error) {
	var text []byte
	token, err := s.read(ctx, in.After, []string{paymentModel}, func(ctx context.Context, schemas []string) error {
		err := s.DB.QueryRow(ctx, `SELECT state FROM `+schemas[0]+`.payments WHERE id = $1`, string(in.ID)).Scan(&text)
		if errors.Is(err, pgx.ErrNoRows) {
			return notFound("payment")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	state, err := readState[payment.State](text)
	if err != nil {
		return nil, err
	}
	if !paymentParty(state, httpapi.Actor(ctx)) {
		return nil, notFound("payment")
	}
	return &paymentOutput{ETag: httpapi.ETag(state.Version), Token: token, Body: payment.NewView(state)}, nil
}

func (s *Side) listOpsPayments(ctx context.Context, in *opsPaymentsInput) (*opsPaymentsOutput, error) {
	start, err := in.start()
	if err != nil {
		return nil, err
	}
	type row struct {
		id    string
		at    time.Time
		state []byte
	}
	var rows []row
	token, err := s.read(ctx, in.After, []string{paymentModel}, func(ctx context.Context, schemas []string) error {
		which := map[string]string{"unmatched": "has_unmatched", "refund_failed": "refund_failed", "": "(has_unmatched OR refund_failed)"}[in.State]
		found, err := s.DB.Query(ctx, `SELECT id, created_at, state FROM `+schemas[0]+`.payments
			WHERE `+which+` AND (created_at, id) < ($1::timestamptz, $2) ORDER BY created_at DESC, id DESC LIMIT $3`, start.at, start.id, in.Limit+1)
		if err != nil {
			return err
		}
		rows, err = pgx.CollectRows(found, func(r pgx.CollectableRow) (p row, err error) {
			err = r.Scan(&p.id, &p.at, &p.state)
			return p, err
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &opsPaymentsOutput{}
	rows, out.Body.NextCursor = cut(rows, in.Limit, func(r *row) pageEnd { return pageEnd{r.at, r.id} })
	out.Body.Items = make([]payment.View, 0, len(rows))
	for _, r := range rows {
		state, err := readState[payment.State](r.state)
		if err != nil {
			return nil, err
		}
		out.Body.Items = append(out.Body.Items, payment.NewView(state))
	}
	out.Token = token
	return out, nil
}

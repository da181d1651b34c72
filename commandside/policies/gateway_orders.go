package policies

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/commandside/gateway"
	"tomato/domain"
	"tomato/eventlog"
)

// GatewayOrders finds the order of a gateway order in the payments read model.
type GatewayOrders interface {
	// OrderOf returns the order id. It waits until the read model has passed
	// after. ok is false if the read model knows none then.
	OrderOf(ctx context.Context, gatewayOrderID string, after eventlog.Token) (orderID string, ok bool, err error)
}

// OrderFinder finds the order that a gateway order was opened for. Policies and
// REST commands share it. Safe for concurrent use.
type OrderFinder struct {
	ReadModel GatewayOrders
	Gateway   gateway.Gateway
	Client    *kgo.Client // asks for the ends of topic payments
}

// OrderOf returns the order of a gateway order. known is false only if the gateway
// itself says that there is no such order, or that it is not ours. The error is
// eventlog.ErrUnavailable, unless Postgres answered with another one.
//
// A webhook may come before the read model has seen its PAYMENT_REQUESTED. The
// client learned the gateway order only after that event was acknowledged, so the
// event is before the present end of the log: the read model is asked again once
// it has passed that end. Two cases are left: a read model that is being rebuilt,
// and an end that was told by a broker which is the leader no more. In both the
// gateway is asked.
func (f *OrderFinder) OrderOf(ctx context.Context, gatewayOrderID string) (orderID string, known bool, err error) {
	if gatewayOrderID == "" {
		return "", false, nil
	}
	// A read model that is behind or unavailable must not cost a webhook one of its attempts.
	if orderID, known, err = f.ReadModel.OrderOf(ctx, gatewayOrderID, nil); err != nil {
		return "", false, readModelError(err)
	} else if known {
		return orderID, true, nil
	}
	after, err := eventlog.EndToken(ctx, f.Client, eventlog.Payments)
	if err != nil {
		return "", false, eventlog.Unavailable(fmt.Errorf("end of %s: %w", eventlog.Payments, err))
	}
	if orderID, known, err = f.ReadModel.OrderOf(ctx, gatewayOrderID, after); err != nil {
		return "", false, readModelError(err)
	} else if known {
		return orderID, true, nil
	}
	receipt, err := f.Gateway.Order(ctx, gatewayOrderID)
	if errors.Is(err, gateway.ErrUnknown) || errors.Is(err, gateway.ErrRefused) {
		return "", false, nil
	}
	return receipt, err == nil && domain.ValidID(receipt), err
}

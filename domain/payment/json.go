package payment

import "tomato/domain"

// The events of a payment that succeeds write their JSON without reflection. Fields
// and their order are those of the structs. TestJSON compares the result with that of
// encoding/json.

// WriteJSON implements domain.JSONWriter.
func (e PaymentRequested) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", e.OrderID)
	j.String("provider", e.Provider)
	j.String("gatewayOrderId", e.GatewayOrderID)
	j.Int("amount", e.Amount)
	j.String("currency", e.Currency)
	j.Bool("booked", e.Booked)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e PaymentSuccess) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", e.OrderID)
	j.String("paymentId", e.PaymentID)
	j.Int("amount", e.Amount)
	j.String("currency", e.Currency)
	j.String("gatewayOrderId", e.GatewayOrderID)
	j.Bool("booked", e.Booked)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

package payment

import "tomato/domain"

// The events of every payment that goes well write their JSON by hand. Fields
// and their order are those of the structs.

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

package payment

import "tomato/domain"

// The events of most payments, and the state in snapshots and rows, write their JSON
// without reflection. Fields and their order are those of the structs. TestJSON compares
// the result with that of encoding/json.

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

// WriteJSON implements domain.JSONWriter.
func (e PaymentFailed) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", e.OrderID)
	j.String("paymentId", e.PaymentID)
	j.Int("amount", e.Amount)
	j.String("currency", e.Currency)
	j.String("gatewayOrderId", e.GatewayOrderID)
	j.SomeString("reason", e.Reason)
	j.Bool("booked", e.Booked)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e RefundRequested) WriteJSON(j *domain.JSON) {
	j.Open()
	j.SomeString("orderId", e.OrderID)
	j.String("paymentId", e.PaymentID)
	j.String("refundId", e.RefundID)
	j.Int("amount", e.Amount)
	j.String("currency", e.Currency)
	j.String("reason", e.Reason)
	j.Bool("booked", e.Booked)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e RefundSuccess) WriteJSON(j *domain.JSON) {
	j.Open()
	j.SomeString("orderId", e.OrderID)
	j.String("paymentId", e.PaymentID)
	j.String("refundId", e.RefundID)
	j.Int("amount", e.Amount)
	j.String("currency", e.Currency)
	j.Bool("booked", e.Booked)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (a Attempt) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("paymentId", a.PaymentID)
	j.Int("amount", a.Amount)
	j.String("currency", a.Currency)
	j.String("state", string(a.State))
	j.String("gatewayStatus", a.GatewayStatus)
	j.SomeString("reason", a.Reason)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (f Refund) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("refundId", f.RefundID)
	j.String("paymentId", f.PaymentID)
	j.Int("amount", f.Amount)
	j.String("currency", f.Currency)
	j.String("status", string(f.Status))
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (s *State) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("id", s.ID)
	j.SomeString("orderId", s.OrderID)
	j.Int("version", s.Version)
	j.SomeString("status", string(s.Status))
	j.SomeString("provider", s.Provider)
	j.SomeString("gatewayOrderId", s.GatewayOrderID)
	j.SomeInt("amount", s.Amount)
	j.SomeString("currency", s.Currency)
	j.SomeString("customerId", s.CustomerID)
	j.SomeString("restaurantId", s.RestaurantID)
	j.SomeString("booked", s.Booked)
	if len(s.Attempts) > 0 {
		domain.JSONList(j, "attempts", s.Attempts)
	}
	if len(s.Refunds) > 0 {
		domain.JSONList(j, "refunds", s.Refunds)
	}
	j.SomeTime("createdAt", s.CreatedAt)
	j.SomeTime("updatedAt", s.UpdatedAt)
	j.Close()
}

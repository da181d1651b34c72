package rider

import "tomato/domain"

// The events of every delivery write their JSON without reflection. Fields and their
// order are those of the structs. TestJSON compares the result with that of
// encoding/json.

// WriteJSON implements domain.JSONWriter.
func (e RiderClaimed) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("riderId", e.RiderID)
	j.String("riderName", string(e.RiderName))
	j.Int("claimId", e.ClaimID)
	j.String("orderId", e.OrderID)
	j.Int("round", int64(e.Round))
	j.Int("wave", int64(e.Wave))
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e RiderReleased) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("riderId", e.RiderID)
	j.Int("claimId", e.ClaimID)
	j.String("orderId", e.OrderID)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

package rider

import "tomato/domain"

// The events of every delivery, and the state in snapshots and rows, write their JSON
// without reflection. Fields and their order are those of the structs. TestJSON compares
// the result with that of encoding/json.

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

// WriteJSON implements domain.JSONWriter.
func (c Claim) WriteJSON(j *domain.JSON) {
	j.Open()
	j.Int("claimId", c.ID)
	j.String("orderId", c.OrderID)
	j.Int("round", int64(c.Round))
	j.Int("wave", int64(c.Wave))
	j.String("customerId", c.CustomerID)
	j.String("restaurantId", c.RestaurantID)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (s *State) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("riderId", s.ID)
	j.Int("version", s.Version)
	j.String("name", string(s.Name))
	j.SomeString("vehicle", s.Vehicle)
	j.String("verification", string(s.Verification))
	if s.Online {
		j.Bool("online", true)
	}
	if s.Claim != nil {
		j.Name("claim")
		s.Claim.WriteJSON(j)
	}
	j.SomeTime("createdAt", s.CreatedAt)
	j.SomeTime("updatedAt", s.UpdatedAt)
	j.Close()
}

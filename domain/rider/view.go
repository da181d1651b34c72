package rider

import "tomato/domain"

// View is the rider as clients see it.
type View struct {
	RiderID      string        `json:"riderId"`
	Version      int64         `json:"version"`
	Name         string        `json:"name,omitempty"` // not for support
	Vehicle      string        `json:"vehicle,omitempty"`
	Verification Verification  `json:"verification"`
	Status       Status        `json:"status"`
	OrderID      string        `json:"orderId,omitempty"`
	Location     *domain.Point `json:"location,omitempty"` // the latest, in queries only, and not for support

	Sealed domain.Sealed `json:"-"` // what Name is made of; whoever makes an answer opens it
}

// NewView makes the view of a rider, without a location. The name is still sealed.
func NewView(s *State) View {
	v := View{RiderID: s.ID, Version: s.Version, Sealed: s.Name, Vehicle: s.Vehicle, Verification: s.Verification, Status: s.Status()}
	if s.Claim != nil {
		v.OrderID = s.Claim.OrderID
	}
	return v
}

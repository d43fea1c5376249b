package nocompile

import (
	"context"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

type vendor struct{}

func (vendor) Issue(context.Context, credential.TokenRequest[scope.Model]) (credential.TokenResponse, error) {
	return credential.TokenResponse{}, nil
}

func mint(context.Context, credential.TokenRequest[scope.Model]) (credential.TokenResponse, error) {
	return credential.TokenResponse{}, nil
}

func issuers(options *credential.BrokerOptions, f credential.IssuerFunc[scope.Model], r credential.TokenRequest[scope.Model], s scope.Model) {
	_, _ = credential.NewBroker[scope.Tool](vendor{}, options)  // want "wrong type for method Issue"
	_, _ = credential.NewBroker[scope.Tool](f, options)         // want "cannot use f"
	var _ credential.Issuer[scope.Tool] = f                     // want "cannot use f"
	var _ credential.Issuer[scope.Tool] = vendor{}              // want "wrong type for method Issue"
	_ = credential.IssuerFunc[scope.Tool](f)                    // want "cannot convert f"
	_ = credential.IssuerFunc[scope.Tool](mint)                 // want "cannot convert mint"
	_, _ = credential.IssuerFunc[scope.Tool](nil).Issue(nil, r) // want "cannot use r"
	_ = credential.TokenRequest[scope.Tool](r)                  // want "cannot convert r"
	_ = credential.TokenRequest[scope.Tool]{Scope: s}           // want "cannot use s"
	_ = credential.TokenRequest[scope.Any]{}                    // want "does not satisfy"
}

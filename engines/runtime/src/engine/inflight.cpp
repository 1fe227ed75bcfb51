#include "engine/inflight.hpp"

#include "engine/engine.hpp"
#include "error.hpp"

namespace nvlm {

namespace {

// A request in flight; ended with this object unless it has ended by itself.
class Flight {
  public:
    Flight(InflightSession& session, const TokenRequest& tokens)
        : session_(session), number_(session.submit(tokens)) {}
    ~Flight() {
        if (!over_) session_.cancel(number_);
    }
    Flight(const Flight&) = delete;
    Flight& operator=(const Flight&) = delete;

    TokenUpdate next(Cancellation& cancellation) {
        const Cancellation::Scope scope(cancellation, [this] { session_.cancel(number_); });
        TokenUpdate update = session_.next_update(number_, cancellation);
        over_ = update.final;
        return update;
    }

  private:
    InflightSession& session_;
    std::uint64_t number_;
    bool over_ = false;
};

// An engine that stops before it must has seen the end of the turn.
std::string accept(Answer& answer, const TokenUpdate& update) {
    std::string text;
    for (const std::int64_t token : update.tokens) {
        if (!answer.finished()) text += answer.accept_token(token);
    }
    if (update.final && !answer.finished()) text += answer.end();
    return text;
}

}  // namespace

void answer_inflight(InflightSession& session, const TokenRequest& tokens, const Request& request,
                     Answer& answer, StageTimer& timer, Cancellation& cancellation) {
    if (request.top_logits > 0) {
        throw Error(Status::usage, "this engine gives tokens and no logits", "leave top_logits out");
    }
    cancellation.throw_if_requested();
    Flight flight(session, tokens);
    for (bool first = true; !answer.finished(); first = false) {
        std::string piece;
        {
            const StageTimer::Stage stage(timer, first ? "prefill" : "decode");
            piece = accept(answer, flight.next(cancellation));
        }
        if (first) timer.add("first_token", timer.elapsed_ms());
        if (!piece.empty() && request.on_text) request.on_text(piece);
    }
}

void Engine::generate_inflight(const Request& request, const Prepared& prepared,
                               const std::vector<float>& visual, Answer& answer, StageTimer& timer,
                               Cancellation& cancellation) {
    TokenRequest tokens;
    tokens.ids = prepared.prompt.input_ids;
    tokens.visual_positions = prepared.prompt.visual_positions;
    tokens.visual_tokens = visual.data();
    for (const TiledImage& image : prepared.images) {
        tokens.tile_bytes = image.tile_bytes();
        for (std::size_t i = 0; i < image.tiles(); ++i) tokens.tiles.push_back(image.tile(i));
    }
    tokens.max_new_tokens = prepared.max_new_tokens;
    tokens.end_id = answer.end_id();
    tokens.sampling = request.sampling;
    answer_inflight(*sessions_.inflight, tokens, request, answer, timer, cancellation);
}

}  // namespace nvlm
